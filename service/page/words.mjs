// What the page says about an answer: the headline, the sum, sentences. Nothing here touches the document.

export const round = (value) => Math.round(100 * value) / 100 || 0;
export const number = (value) => value.toFixed(2).replace("-", "−");
export const signed = (value) => (value < 0 ? "" : "+") + number(value);
// No probability is told as 0 or as certain, unless it is.
export const percent = (value) =>
  (value > 0.9999 && value < 1 ? "> 99.99" : value < 0.0001 && value > 0 ? "< 0.01" : (100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 2 : 1)) + " %";

/** A picture may be less similar to a prototype than pictures usually are, even at the most similar place. */
export const absent = (item) => item.similarity < item.usual;

/** A label such as Granny-Smith as words, and the label at the end of a node's path. */
export const readable = (label) => label.replaceAll(/[-_]+/g, " ");
export const labelOf = (node) => readable(node.slice(node.lastIndexOf("/") + 1));

/** The name of a picture's file, without its folder and its ending. */
export const stem = (path) => path.replace(/^.*\//, "").replace(/\.\w+$/, "");

const EVEN_ODDS = 0.5;
const share = (precision) => `${round(100 * precision)} %`;

/**
 * How far the answer goes: `levels` of the path that hold (0 for none), a `title` that claims no more, and why it stops
 * there. `sure` is whether it goes all the way.
 */
export function extent(prediction) {
  const { levels, known_through_level: known, answer: stated } = prediction;
  // Where too few pictures were held out to promise anything, the odds tell how far it goes, as without a promise.
  if (stated && (stated.level || !stated.reason.includes("too few"))) return promised(prediction);
  const likely = levels.findIndex((level) => level.probability < EVEN_ODDS);
  const certain = likely < 0 ? levels.length : likely;
  const held = Math.min(known ?? levels.length, certain);
  const next = levels[held];
  const guess = next && `${readable(next.label)}, ${percent(next.probability)}`;
  if (!next) {
    const last = levels.at(-1);
    const doubt = known === null ? ", if it is of a class I know" : "";
    const few = stated ? `; too few pictures were held out to promise ${share(stated.precision)}` : "";
    return { levels: held, sure: !lacking(last), title: readable(last.label), reason: `${percent(last.probability)} sure${doubt}${lacking(last)}${few}` };
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
function promised({ answer: { level: held, node, precision, reason }, levels }) {
  const unknown = reason.includes("unknown");
  const title = held ? labelOf(node) : unknown ? "Nothing I know" : "Not sure";
  const promise = share(precision);
  const doubt = held ? lacking(levels[held - 1]) : "";
  if (held === levels.length) {
    return { levels: held, sure: !doubt, title, reason: `${percent(levels.at(-1).probability)} sure; of such answers, at least ${promise} are right${doubt}` };
  }
  const guess = `${readable(levels[held].label)}, ${percent(levels[held].probability)}`;
  const where = held ? `Stops at ${title}` : "Stops at once";
  const why = unknown ? (held ? `None of the kinds of ${title} I know` : "Unlike all that I learned from")
    : reason.includes("below") ? `${where}: below ${promise}` : `${where}: ${reason.replace(/^stops: /, "").replace(/0\.\d+/, promise)}`;
  return { levels: held, sure: false, title, reason: `${why}. The closest is ${guess}${doubt}.` };
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

/**
 * A contrast as a level: what tells the predicted node from the other one speaks for it, and the sum is its lead. Pieces
 * of the other node that were not found come with the rest.
 */
export function contrastLevel(contrast) {
  const pieces = [...contrast.evidence, ...contrast.missing].map((item) => ({ ...item, contribution: item.difference }));
  const sorted = (sign) => pieces.filter(({ difference }) => sign * difference > 0).sort((one, other) => sign * (other.difference - one.difference));
  return {
    contrast, label: `the lead of ${labelOf(contrast.predicted)}`, evidence: sorted(1), against: sorted(-1),
    logit: contrast.logit_difference, prior: contrast.prior_difference,
  };
}

/** A piece of evidence in words. */
export function pieceWords({ item, kind, value, number: count }, level) {
  const [left, top, right, bottom] = item.box;
  const effect = kind === "evidence" ? `adds ${number(value)} to` : `takes ${number(-value)} from`;
  const likeness = absent(item) ? "is less than usual like" : "looks like";
  const from = item.source ? `a part of the training picture ${item.source.image}` : `prototype ${item.prototype}`;
  return `${count}: ${effect} ${readable(level.label)}. The part from ${left}, ${top} to ${right}, ${bottom} ${likeness} ${from}.`;
}

/** An option of the query as a keyword of the Python client: lists and mappings become Python's own. */
export function pythonArgument(name, value) {
  const parts = value.split(",").map((part) => part.trim()).filter(Boolean);
  if (name === "without") return `${name}=[${parts.join(", ")}]`;
  if (name === "allow" || name === "deny") return `${name}=${JSON.stringify(parts)}`;
  if (name === "depth" || name === "prior") {
    const pairs = parts.map((part) => [part.slice(0, Math.max(part.lastIndexOf(":"), 0)), part.slice(part.lastIndexOf(":") + 1)]);
    return `${name}={${pairs.map(([node, number]) => `${JSON.stringify(node)}: ${number}`).join(", ")}}`;
  }
  return `${name}=${/^[0-9.]+$/.test(value) ? value : JSON.stringify(value)}`;
}
