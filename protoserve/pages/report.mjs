// Draws the parts of a report that somebody looks at: one kind of mistake, one class's prototypes. It fetches nothing.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const readable = (label) => label.replaceAll(/[-_]+/g, " ");
const labelOf = (node) => readable(node.slice(node.lastIndexOf("/") + 1));
const pathOf = (node) => node.split("/").map(readable).join(" › ");
// No probability is told as 0 or as certain, unless it is.
const percent = (value) =>
  (value > 0.9999 && value < 1 ? "> 99.99" : value < 0.0001 && value > 0 ? "< 0.01" : (100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 2 : 1)) + " %";
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

function make(tag, attributes = {}, ...children) {
  const { aria = {}, style = {}, data: own = {}, ...rest } = attributes;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  Object.assign(element.dataset, own);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Each picture is decoded when it is first shown, and kept.
const urls = new Map();
function address(number) {
  if (!urls.has(number)) {
    const bytes = Uint8Array.from(atob(data.pictures[number]), (character) => character.charCodeAt(0));
    urls.set(number, URL.createObjectURL(new Blob([bytes], { type: "image/webp" })));
  }
  return urls.get(number);
}
const image = (number, alt, className = "") =>
  number === null ? make("span", { className: "nothing", textContent: "no picture" }) : make("img", { src: address(number), alt, className, decoding: "async" });

const prototypes = new Map(data.prototypes.map((one) => [one.id, one]));
const link = (text, hash, current = false) => {
  const element = make("a", { href: `#${hash}`, textContent: text });
  if (current) element.setAttribute("aria-current", "true");
  return element;
};
const hashOf = (name, ...parts) => `${name}=${parts.map(encodeURIComponent).join("&")}`;

// ---- mistakes

const kindOf = ({ true: one, predicted }) => `${one}\n${predicted}`;
const kinds = data.confusions.flatMap(({ nodes, counts }) => counts.flatMap((row, one) =>
  row.flatMap((count, other) => (count && one !== other ? [{ true: nodes[one], predicted: nodes[other], count }] : []))))
  .sort((one, other) => other.count - one.count);
const shown = Map.groupBy ? Map.groupBy(data.mistakes, kindOf) : data.mistakes.reduce((all, one) => all.set(kindOf(one), [...(all.get(kindOf(one)) ?? []), one]), new Map());

function listKinds(chosen) {
  const place = $("kinds");
  if (!place) return;
  const lines = kinds.map((kind) => {
    const words = [make("b", { textContent: labelOf(kind.true) }), " taken for ", make("b", { textContent: labelOf(kind.predicted) })];
    const inner = data.pictured ? make("a", { href: `#${hashOf("kind", kind.true, kind.predicted)}` }, ...words) : make("span", {}, ...words);
    if (kind === chosen) inner.setAttribute("aria-current", "true");
    return make("li", {}, inner, make("small", { textContent: ` ${kind.count}` }));
  });
  place.replaceChildren(make("ul", {}, ...lines));
}

function showKind(one, other) {
  const kind = kinds.find((found) => found.true === one && found.predicted === other);
  if (!kind || !data.pictured) return false;
  listKinds(kind);
  const found = shown.get(kindOf(kind)) ?? [];
  const note = found.length === kind.count ? "" : found.length ? `the ${found.length} most certain of ${kind.count}` : "none of these is among the mistakes with pictures";
  $("gallery").replaceChildren(
    make("h3", {}, `${labelOf(one)} taken for ${labelOf(other)} `, make("span", { className: "soft", textContent: note })),
    make("p", { className: "soft", textContent: pathOf(one).split(" › ").slice(0, -1).join(" › ") }),
    make("div", { className: "cards" }, ...found.map(mistakeCard)));
  return true;
}

function mistakeCard(mistake) {
  const [truth, answer] = mistake.probabilities;
  const name = mistake.image.slice(mistake.image.lastIndexOf("/") + 1);
  const summary = make("summary", {},
    image(mistake.picture, mistake.image),
    make("span", {}, make("b", { textContent: labelOf(mistake.predicted) }), ` ${percent(answer)}`),
    make("span", { className: "soft" }, `truth ${labelOf(mistake.true)} ${percent(truth)}`),
    make("span", { className: "soft name", textContent: name, title: mistake.image }));
  const card = make("details", { className: "mistake" }, summary);
  card.addEventListener("toggle", () => {
    if (!card.open || card.children.length > 1) return;
    const [forAnswer, forTruth] = mistake.explanations;
    card.append(make("p", { className: "soft", textContent: `${pathOf(mistake.leaves[1])} instead of ${pathOf(mistake.leaves[0])}` }),
      make("div", { className: "both" },
        explanation(mistake, forAnswer, "What speaks for the answer"),
        forTruth ? explanation(mistake, forTruth, "What speaks for the truth") : null));
  });
  return card;
}

// The height of a mistake's picture and the side of a number on it, in display pixels.
const SHOWN = 260, BADGE = 21;

function explanation(mistake, told, title) {
  const [width, height] = mistake.size;
  // Numbers that would cover each other stand side by side, in display pixels.
  const placed = [];
  const beside = ([left, top]) => {
    const x = (left / 100) * SHOWN * (width / height), y = (top / 100) * SHOWN;
    let shift = 0;
    while (placed.some(([ox, oy]) => Math.abs(ox - x - shift) < BADGE && Math.abs(oy - y) < BADGE)) shift += BADGE;
    placed.push([x + shift, y]);
    return shift;
  };
  const frames = told.pieces.map((piece, index) => ({ ...piece, number: index + 1 })).filter(({ share }) => share > 0).map((piece) => {
    const [left, top, right, bottom] = piece.box;
    const inset = [top, 100 - right, 100 - bottom, left].map((share) => `max(4px, ${share}%)`).join(" ");
    return make("i", { className: `frame${piece.absent ? " absent" : ""}`, style: { inset } }, make("b", { textContent: piece.number, style: { "margin-left": `${beside(piece.box)}px` } }));
  }).reverse();
  const largest = Math.max(...told.pieces.map(({ share }) => Math.abs(share)), 0.01);
  const rows = told.pieces.map((piece, index) => make("li", { className: piece.share > 0 ? "for" : "against" },
    make("span", { className: "number", textContent: index + 1 }),
    image(prototypes.get(piece.id)?.picture ?? null, `training patch of prototype ${piece.id}`),
    make("span", { className: "tell" },
      make("span", { className: "soft", textContent: piece.absent ? "less than usual like" : "looks like" }),
      link(`prototype ${piece.id}`, `prototype=${piece.id}`),
      make("span", { className: "soft", textContent: labelOf(prototypes.get(piece.id)?.node ?? "") })),
    make("b", { className: "value", textContent: piece.value, title: piece.terms }),
    make("span", { className: "bar" }, make("i", { style: { width: `${(100 * Math.abs(piece.share)) / largest}%` } }))));
  return make("section", { className: "explanation" },
    make("h4", {}, `${title}: `, labelOf(told.node)),
    make("div", { className: "photograph", style: { "aspect-ratio": `${width} / ${height}`, "--ratio": width / height } }, image(mistake.picture, mistake.image), ...frames),
    make("ol", {}, ...rows),
    make("p", { className: "soft", textContent: `${told.prior} prior and ${told.rest} by all other prototypes make a score of ${told.score.toFixed(2).replace("-", "−")}.` }));
}

for (const place of document.querySelectorAll("[data-confusion]")) {
  place.closest("details").addEventListener("toggle", () => { if (!place.children.length) place.append(confusionTable(data.confusions[place.dataset.confusion])); });
}

function confusionTable({ nodes, counts }) {
  const head = make("tr", {}, make("td"), ...nodes.map((node) => make("th", { scope: "col" }, make("span", { textContent: labelOf(node) }))));
  const body = counts.map((row, one) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    const cells = row.map((count, other) => {
      const inner = count && one !== other && data.pictured ? link(String(count), hashOf("kind", nodes[one], nodes[other])) : count ? String(count) : "";
      return make("td", { className: one === other ? "own" : "", style: count ? { "--share": (0.85 * count) / total } : {} }, inner);
    });
    return make("tr", {}, make("th", { scope: "row", textContent: labelOf(nodes[one]) }), ...cells);
  });
  return make("table", { className: "matrix" }, make("thead", {}, head), make("tbody", {}, ...body));
}

// ---- prototypes

const nodes = [...new Set(data.prototypes.map(({ node }) => node))];
const byNode = new Map(nodes.map((node) => [node, data.prototypes.filter((one) => one.node === node)]));
const LISTED = 300;
let filled = "";

function finder() {
  const place = $("finder");
  if (!place) return;
  const search = make("input", { type: "search", placeholder: "Class, image or number", aria: { label: "Find prototypes by class, image or number" } });
  const list = make("ul", { id: "classes" });
  search.addEventListener("input", () => fill(search.value));
  place.replaceChildren(search, list);
  fill("");
}

function fill(words) {
  filled = words;
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const held = (one) => `${one.node} ${readable(one.node)} ${one.image}`.toLowerCase();
  const fits = (one) => wanted.every((word) => (/^\d+$/.test(word) ? String(one.id) === word : held(one).includes(word)));
  const found = nodes.map((node) => [node, byNode.get(node).filter(fits)]).filter(([, some]) => some.length);
  let parent = null;
  const lines = found.slice(0, LISTED).flatMap(([node, some]) => {
    const above = some[0].parent;
    const head = above === parent ? [] : [make("li", { className: "parent", textContent: above ? `below ${pathOf(above)}` : "at the root" })];
    parent = above;
    return [...head, make("li", {}, link(labelOf(node), hashOf("node", node), node === state.node), make("small", { textContent: ` ${some.length}` }))];
  });
  if (found.length > LISTED) lines.push(make("li", { className: "soft", textContent: `and ${found.length - LISTED} more: type to find them` }));
  if (!found.length) lines.push(make("li", { className: "soft", textContent: "nothing found" }));
  $("classes").replaceChildren(...lines);
}

const state = { node: null };
const strength = ({ separation }) => (separation ? separation[2] : 0);

function showNode(node, only = null) {
  const found = byNode.get(node);
  if (!found) return false;
  state.node = node;
  fill(filled);
  const sorted = [...found].sort((one, other) => strength(other) - strength(one));
  const parent = found[0].parent;
  $("prototype-list").replaceChildren(
    make("h3", {}, pathOf(node), " ", make("span", { className: "soft", textContent: `${found.length} prototype${found.length > 1 ? "s" : ""}, competing ${parent ? `below ${labelOf(parent)}` : "at the root"}` })),
    ...listed(sorted.map((one) => prototypeCard(one, one.id === only)), Math.max(SHORT, 1 + sorted.findIndex((one) => one.id === only))));
  return true;
}

// The first cards, and a button for the rest.
const SHORT = 8;
function listed(cards, count) {
  if (cards.length <= count + 2) return cards;
  const more = make("button", { type: "button", textContent: `Show all ${cards.length}` });
  more.onclick = () => { more.replaceWith(...cards.slice(count)); cards[count].querySelector("a").focus(); };
  return [...cards.slice(0, count), more];
}

function prototypeCard(one, chosen) {
  const { separation, purity } = one;
  const facts = [`weighs ${signed(one.weight)}`];
  if (separation) facts.push(`own ${separation[0].toFixed(2)}, siblings ${separation[1].toFixed(2)}, effect ${signed(separation[2])}`);
  if (purity) facts.push(`purity ${purity[0]} of ${purity[1]}`);
  const flags = one.notes.map((note) => make("span", { className: "flag", textContent: note }));
  const patches = one.near.map(([picture, source, own]) => {
    const [name, leaf] = data.images[source];
    return make("figure", { className: own ? "" : "other", title: name }, image(picture, ""), make("figcaption", { textContent: (own ? "" : "✕ ") + readable(leaf) }));
  });
  return make("article", { className: `prototype${chosen ? " chosen" : ""}`, id: `p${one.id}` },
    make("div", { className: "own" }, image(one.picture, `training patch of prototype ${one.id}, from ${one.image}`)),
    make("div", { className: "text" },
      make("p", {}, link(`Prototype ${one.id}`, `prototype=${one.id}`), " ", make("span", { className: "soft", textContent: facts.join(" · ") }), " ", ...flags),
      one.apart.length ? make("p", { className: "apart" }, `tells ${labelOf(one.node)} from `, ...one.apart.flatMap(([label, effect], index) => [index ? ", " : "", make("span", { className: effect >= 1 ? "" : "weak", textContent: `${readable(label)} ${signed(effect, 1)}` })])) : null,
      make("p", { className: "soft name", textContent: one.image })),
    patches.length ? make("div", { className: "strip", tabIndex: 0, aria: { role: "group", label: `nearest training patches of prototype ${one.id}` } }, ...patches) : null);
}

// ---- addresses

function follow(scroll = true) {
  const [name, rest = ""] = location.hash.slice(1).split("=");
  const parts = rest.split("&").map(decodeURIComponent);
  let place = null;
  if (name === "kind" && showKind(...parts)) place = $("gallery");
  if (name === "node" && showNode(parts[0])) place = $("prototype-list");
  if (name === "prototype" && prototypes.has(Number(parts[0]))) {
    showNode(prototypes.get(Number(parts[0])).node, Number(parts[0]));
    place = $(`p${parts[0]}`);
  }
  if (place && scroll) {
    place.tabIndex = -1;
    place.focus({ preventScroll: true });
    place.scrollIntoView({ block: "nearest" });
  }
}

listKinds(null);
finder();
const first = kinds.find((kind) => shown.has(kindOf(kind)));
if (first) showKind(first.true, first.predicted);
if (nodes.length) showNode(nodes[0]);
window.addEventListener("hashchange", () => follow());
follow();
})();
