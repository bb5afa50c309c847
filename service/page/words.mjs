// What the page says about an answer: the headline, the sum, sentences. Nothing here touches the document.

export const round = (value) => Math.round(100 * value) / 100 || 0;
export const number = (value) => value.toFixed(2).replace("-", "−");
export const signed = (value) => (value < 0 ? "" : "+") + number(value);
export const percent = (value) => (100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 2 : 1) + " %";

/** A picture may be less similar to a prototype than pictures usually are, even at the most similar place. */
export const absent = (item) => item.similarity < item.usual;

/** A label such as Granny-Smith as words, and the label at the end of a node's path. */
export const readable = (label) => label.replaceAll(/[-_]+/g, " ");
export const labelOf = (node) => readable(node.slice(node.lastIndexOf("/") + 1));

const EVEN_ODDS = 0.5;

/**
 * How far the answer goes: `levels` of the path that hold (0 for none), a `title` that claims no more, and why it stops
 * there. `sure` is whether it goes all the way.
 */
export function extent(prediction) {
  const { levels, known_through_level: known } = prediction;
  if (prediction.answer) return promised(prediction);
  const likely = levels.findIndex((level) => level.probability < EVEN_ODDS);
  const certain = likely < 0 ? levels.length : likely;
  const held = Math.min(known ?? levels.length, certain);
  const next = levels[held];
  const guess = next && `${readable(next.label)}, ${percent(next.probability)}`;
  if (!next) {
    const last = levels.at(-1);
    const doubt = known === null ? ", if it is of a class I know" : "";
    return { levels: held, sure: !lacking(last), title: readable(last.label), reason: `${percent(last.probability)} sure${doubt}${lacking(last)}` };
  }
  const unknown = known !== null && known <= certain;
  if (!held) {
    return unknown
      ? { levels: 0, sure: false, title: "Nothing I know", reason: `Unlike all that I learned from. The closest is ${guess}.` }
      : { levels: 0, sure: false, title: "Not sure", reason: `The best guess, ${guess}, has less than even odds.` };
  }
  const title = readable(levels[held - 1].label);
  return unknown
    ? { levels: held, sure: false, title, reason: `None of the kinds of ${title} I know. The closest is ${guess}.` }
    : { levels: held, sure: false, title, reason: `Which kind is not sure. The best guess, ${guess}, has less than even odds.` };
}

/** What to say where more speaks for a node that the picture lacks than that it shows: no reason for confidence. */
function lacking({ evidence }) {
  const total = (pieces) => pieces.reduce((sum, { contribution }) => sum + contribution, 0);
  return 2 * total(evidence.filter(absent)) > total(evidence) ? ", more by what the picture lacks than by what it shows" : "";
}

/** The same, where the answer states a precision and how deep that holds. */
function promised({ answer, levels }) {
  const held = answer.level ?? 0;
  const sure = held === levels.length;
  const title = held ? readable(answer.label ?? labelOf(answer.node)) : "No answer";
  const doubt = held ? lacking(levels[held - 1]) : "";
  const reason = (sure ? `${percent(levels[held - 1].probability)} sure` : answer.reason) + doubt;
  return { levels: held, sure: sure && !doubt, title, reason };
}

/** One sentence for a screen reader. */
export function sentence(prediction) {
  const { title, reason } = extent(prediction);
  return `${title}: ${reason.replace(/\.$/, "")}.`;
}

/** The pieces of a level with their kind and number: those for it first, each with a contribution that does not round to 0. */
export function piecesOf(level) {
  return ["evidence", "against"]
    .flatMap((kind) => level[kind].map((item) => ({ kind, item, value: round(item.contribution) })))
    .filter(({ value }) => value)
    .map((piece, index) => ({ ...piece, number: index + 1 }));
}

/**
 * The sum as steps of a waterfall, `from` and `to` in logits: prior, pieces, rest, score. Contributions are rounded one by
 * one, as they are shown, and the rest closes the sum. Pieces whose number is in `off` count nothing.
 */
export function waterfall(level, off = new Set()) {
  const pieces = piecesOf(level);
  const prior = round(level.prior ?? 0);
  const told = round(pieces.reduce((sum, { value }) => sum + value, 0));
  const steps = [{ kind: "prior", value: prior }, ...pieces, { kind: "rest", value: round(round(level.logit) - prior - told) }];
  let at = 0;
  for (const step of steps) {
    step.off = off.has(step.number);
    step.from = at;
    at = step.to = round(at + (step.off ? 0 : step.value));
  }
  return [...steps, { kind: "score", value: at, from: 0, to: at }];
}

/** A piece of evidence in words. */
export function pieceWords({ item, kind, value, number: count }, level) {
  const [left, top, right, bottom] = item.box;
  const effect = kind === "evidence" ? `adds ${number(value)} to` : `takes ${number(-value)} from`;
  const likeness = absent(item) ? "is less than usual like" : "looks like";
  const from = item.source ? `a part of the training picture ${item.source.image}` : `prototype ${item.prototype}`;
  return `${count}: ${effect} ${readable(level.label)}. The part from ${left}, ${top} to ${right}, ${bottom} ${likeness} ${from}.`;
}
