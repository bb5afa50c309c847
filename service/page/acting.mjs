// What people do about an answer: ask why it is not another class, or what it would be without some evidence.
import { labelOf, percent } from "./words.mjs";
import { make } from "./state.mjs";

/** The other nodes of a level. */
export function alternativesOf(level) {
  if (!level.alternatives.length) return [];
  const others = level.alternatives.map(({ node, probability }) =>
    make("li", { title: node }, `${labelOf(node)} ${percent(probability)}`));
  return [make("div", { className: "others" }, make("span", { className: "soft", textContent: "Why not" }), make("ul", {}, ...others))];
}

/** What can be done about the evidence of a level. */
export function actions() {
  return [];
}
