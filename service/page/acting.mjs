// What people do about an answer: ask why it is not another class, and what it would be without some evidence.
import { labelOf, percent, piecesOf, readable } from "./words.mjs";
import { download, make, state } from "./state.mjs";

/** The other nodes of a level; each can be asked about. */
export function alternativesOf(level, whyNot) {
  if (!level.alternatives.length) return [];
  const others = level.alternatives.map(({ node, probability }) => {
    const button = make("button", { title: node }, `${labelOf(node)} ${percent(probability)}`);
    button.onclick = () => whyNot(node);
    return make("li", {}, button);
  });
  return [make("div", { className: "others" }, make("span", { className: "soft" }, "Why not"), make("ul", {}, ...others))];
}

/** What a contrast says, and the rest of the other path. */
export function contrastWords({ relation, node, predicted, instead, path }) {
  if (relation !== "beside") {
    const words = relation === "predicted" ? "is part of the answer" : "lies below the answer: nothing speaks against it";
    return make("p", {}, `${labelOf(node)} ${words}.`);
  }
  const others = path.map(({ label, probability }) => `${readable(label)} ${percent(probability)}`).join(" › ");
  return make("p", { className: "heading" }, make("b", {}, `Why ${labelOf(predicted)} and not ${labelOf(instead)}`), make("span", { className: "soft" }, others));
}

/** What the answer supposes: prototypes that are left out, classes that can't be here. */
export function supposed() {
  const { without = [], restriction } = state.current.prediction;
  const lines = [];
  if (without.length) lines.push(`As if ${without.length === 1 ? "prototype" : "prototypes"} ${without.join(", ")} were switched off.`);
  if (restriction?.contradicted) lines.push(`The picture speaks against the restriction: ${percent(restriction.excluded)} lies outside of it.`);
  if (restriction?.unrestricted) lines.push(`Without the restriction: ${restriction.unrestricted.path.map(readable).join(" › ")}, ${percent(restriction.unrestricted.probability)}.`);
  return lines.map((words) => make("p", { className: "supposed" }, words));
}

const prototypesOff = (level) => piecesOf(level).filter(({ number }) => state.off.has(number)).map(({ item }) => item.prototype);

/** What can be done about the pieces that are left out; shown while there are any. */
export function actions(level, askAgain) {
  const before = (state.options.get("without") ?? "").split(",").filter(Boolean);
  const without = (prototypes) => {
    if (prototypes.length) state.options.set("without", prototypes.join(","));
    else state.options.delete("without");
    askAgain();
  };
  const again = make("button", { textContent: "Answer without them", onclick: () => without([...before, ...prototypesOff(level)]) });
  const reason = make("input", { placeholder: "why, for those who read it later", aria: { label: "Why they should not count" } });
  const keep = make("button", {}, "Keep this as a curation");
  keep.onclick = () => download("curation.jsonl", new Blob([curation([...before.map(Number), ...prototypesOff(level)], reason.value)]));
  const off = make("p", { id: "off", className: "actions", hidden: !state.off.size }, again, keep, reason);
  const all = make("button", { textContent: "Count all again", hidden: !before.length, onclick: () => without([]) });
  return make("div", {}, off, all);
}

/** The lines that `protoserve curate --from` reads, one per prototype. */
function curation(prototypes, reason) {
  const { model } = state.current.prediction;
  const line = (prototype) => ({ action: "disable", model: model.version, prototype, reason, by: "", pictures: 1, at: new Date().toISOString() });
  return prototypes.map((prototype) => `${JSON.stringify(line(prototype))}\n`).join("");
}
