// The evidence of one level as a waterfall: from the prior over each piece, a pair of parts that look alike, to the score.
import { absent, labelOf, number, percent, pieceWords, readable, signed, stem, waterfall } from "./words.mjs";
import { crop, drawFrames } from "./picture.mjs";
import { prototypePicture } from "./service.mjs";
import { $, make, state } from "./state.mjs";

const PIXELS = 192;

/** The list of a level's evidence, or of a contrast's, or what stands in its place. */
export function evidenceList(level) {
  if (level.logit === null) {
    const words = level.forced
      ? "The only child of its parent: certain given the parent, so it needs no evidence."
      : "The sum over the classes below it: it has no evidence of its own.";
    return [make("p", { className: "soft" }, words)];
  }
  const steps = waterfall(level, state.off);
  const rows = steps.map((step) => row(step, level));
  const list = make("ol", { className: "sum", aria: { label: `Evidence for ${readable(level.label)}` } }, ...rows);
  list.addEventListener("keydown", moveFocus);
  list.addEventListener("pointerleave", () => point(null));
  showSum(list, steps);
  return level.contrast ? [list] : [list, footer(level)];
}

function row(step, level) {
  const bar = make("span", { className: "flow", aria: { hidden: "true" } }, make("i"));
  const value = make("b", { className: "value" });
  if (!step.item) {
    const names = { prior: "Every similarity as usual", rest: "All other prototypes", score: level.contrast ? `Lead over ${labelOf(level.contrast.instead)}` : "Score" };
    return make("li", { className: `step ${step.kind}` }, make("span", { className: "name" }, names[step.kind]), value, bar);
  }
  const { item, kind } = step;
  const likeness = absent(item) ? "less than usual like" : "looks like";
  const pair = make("button", { className: "pair", aria: { pressed: "false", label: pieceWords(step, level) } },
    make("span", { className: "number" }, step.number),
    crop(item, kind, PIXELS),
    make("span", { className: "like" }, likeness),
    prototypePicture(item.prototype, "patch"));
  pair.onclick = () => keep(state.kept === step.number ? null : step.number);
  pair.onfocus = () => point(step.number);
  pair.onblur = () => point(null);
  // A contribution, or what the piece adds to either node.
  const terms = level.contrast
    ? [`${signed(item.predicted)} for it, `, `${signed(item.instead)} for ${labelOf(level.contrast.instead)}`]
    : [`${number(item.weight)} × `, `(${number(item.similarity)} ${item.usual < 0 ? "+" : "−"} ${number(Math.abs(item.usual))})`];
  const count = level.contrast ? null : make("button", { className: "count", aria: { role: "switch", checked: "true", label: `Count piece ${step.number}` } });
  if (count) count.onclick = () => toggle(step.number, level);
  const source = item.source?.image ?? "";
  const line = make("li", { className: `step piece ${kind}${absent(item) ? " absent" : ""}`, data: { piece: step.number } }, pair,
    make("span", { className: "tell" },
      make("span", { className: "formula" }, ...terms.map((term) => make("span", {}, term))),
      make("a", { href: `#prototypes&id=${item.prototype}` }, `prototype ${item.prototype}`),
      make("span", { className: "source", title: source }, stem(source))),
    value, bar, count ?? "");
  line.onpointerenter = () => point(step.number);
  return line;
}

/** Write the numbers and bars of the steps into the rows of the list. */
function showSum(list, steps) {
  const ends = steps.flatMap(({ from, to }) => [from, to]);
  const low = Math.min(0, ...ends), span = Math.max(0, ...ends) - low || 1;
  const part = (value) => `${(100 * (value - low)) / span}%`;
  list.style.setProperty("--zero", part(0));
  [...list.children].forEach((line, index) => {
    const { kind, value, from, to, off } = steps[index];
    line.classList.toggle("off", Boolean(off));
    line.querySelector(".value").textContent = kind === "score" ? number(value) : signed(value);
    line.querySelector(".count")?.setAttribute("aria-checked", String(!off));
    const bar = line.querySelector(".flow i");
    bar.parentElement.style.setProperty("--from", part(kind === "prior" || kind === "score" ? 0 : from));
    bar.parentElement.style.setProperty("--to", part(to));
    bar.style.left = part(Math.min(from, to));
    bar.style.width = `${(100 * Math.abs(to - from)) / span}%`;
    bar.className = kind === "score" ? "total" : to < from ? "down" : "up";
  });
}

function footer(level) {
  const lines = level.evidence.length + level.against.length ? [] : ["No evidence was asked for."];
  if (level.sufficient) lines.push(`${level.sufficient === 1 ? "One piece suffices" : `${level.sufficient} pieces suffice`}, whatever the rest of the picture may show.`);
  if (level.evidence_share !== null && level.evidence.length) lines.push(`Shown: ${(100 * level.evidence_share).toFixed(0)} % of what speaks for it.`);
  if (!level.forced) lines.push(`Against its siblings' scores, that makes ${percent(level.conditional)}.`);
  return make("p", { className: "soft footer" }, lines.join(" "));
}

/** Leave a piece out of the sum, or count it again. The list keeps its place and the focus. */
function toggle(piece, level) {
  if (!state.off.delete(piece)) state.off.add(piece);
  const steps = waterfall(level, state.off);
  showSum($("panel").querySelector(".sum"), steps);
  $("off").hidden = !state.off.size;
  $("live").textContent = `Piece ${piece} ${state.off.has(piece) ? "left out" : "counted"}: the score is ${number(steps.at(-1).value)}.`;
  drawFrames();
}

/** Show one piece while it is pointed at or focused. */
export function point(piece) {
  if (state.pointed === piece) return;
  state.pointed = piece;
  mark();
}

/** Show one piece alone until it is let go. */
export function keep(piece) {
  state.kept = piece;
  mark();
}

function mark() {
  const chosen = state.pointed ?? state.kept;
  for (const line of document.querySelectorAll(".piece")) {
    const own = Number(line.dataset.piece);
    line.classList.toggle("chosen", own === chosen);
    line.querySelector(".pair").setAttribute("aria-pressed", String(own === state.kept));
  }
  drawFrames();
}

function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.classList.contains("pair")) return;
  const pairs = [...document.querySelectorAll(".pair")];
  pairs[pairs.indexOf(event.target) + step]?.focus();
  event.preventDefault();
}
