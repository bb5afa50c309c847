// All prototypes, by node: the part of a training picture, what it weighs, and what the audit found about it.
import { ask, prototypePicture } from "./service.mjs";
import { labelOf, number, readable, stem } from "./words.mjs";
import { $, make, state } from "./state.mjs";

// More nodes than this are found by typing.
const LISTED = 400;

/** Show the view for the parameters of the page's address: `node` or `id`. */
export async function showPrototypes(parameters) {
  const view = $("prototypes");
  try {
    state.nodes ??= (await ask("v1/taxonomy")).nodes;
    const pages = parameters.get("id")
      ? { prototypes: [await ask(`v1/prototypes/${encodeURIComponent(parameters.get("id"))}`)], cursor: null }
      : await ask(`v1/prototypes?${pageQuery(parameters.get("node"))}`);
    const node = parameters.get("node") ?? pages.prototypes[0]?.node ?? "";
    view.replaceChildren(finder(parameters.get("node")), await gallery(pages, node, parameters));
  } catch (error) {
    view.replaceChildren(make("p", { className: "message" }, error.message));
  }
}

const pageQuery = (node, cursor) => new URLSearchParams({ ...(node && { node }), ...(cursor && { cursor }) });

function finder(chosen) {
  const search = make("input", { type: "search", placeholder: "Find a class", aria: { label: "Find a class" } });
  const list = make("ul", { className: "tree" });
  const fill = () => {
    const words = search.value.toLowerCase();
    const found = state.nodes.filter(({ node }) => node.toLowerCase().replaceAll(/[-_]/g, " ").includes(words.replaceAll(/[-_]/g, " ")))
      .sort((one, other) => (one.node < other.node ? -1 : 1));
    const lines = found.slice(0, LISTED).map(({ node, label, level, prototypes }) => {
      const link = make("a", { href: `#prototypes&node=${encodeURIComponent(node)}` }, readable(label), make("small", {}, ` ${prototypes}`));
      if (node === chosen) link.setAttribute("aria-current", "true");
      const line = make("li", {}, link);
      line.style.setProperty("--depth", level - 1);
      return line;
    });
    const more = found.length > LISTED ? [make("li", { className: "soft" }, `and ${found.length - LISTED} more: type to find them`)] : [];
    const none = found.length ? [] : [make("li", { className: "soft" }, "no class has this name")];
    list.replaceChildren(...lines, ...more, ...none);
  };
  search.oninput = fill;
  fill();
  return make("nav", { className: "finder", aria: { label: "Classes" } }, search, list);
}

async function gallery({ prototypes, cursor }, node, parameters) {
  const heading = parameters.get("id") ? `Prototype ${parameters.get("id")}` : parameters.get("node") ? node.split("/").map(readable).join(" › ") : "All prototypes";
  const cards = make("ul", { className: "cards" }, ...prototypes.map((prototype) => card(prototype, Boolean(parameters.get("id")))));
  const section = make("section", { className: "gallery", aria: { label: heading } }, make("h2", {}, heading), cards);
  if (!prototypes.length) cards.replaceWith(make("p", { className: "soft" }, "An only child, or a node without a head of its own: it has no prototypes."));
  if (!parameters.get("id") && !parameters.get("node")) section.prepend(truthCard(), curatedList());
  if (cursor) {
    const more = make("button", {}, "More");
    more.onclick = async () => {
      const next = await ask(`v1/prototypes?${pageQuery(parameters.get("node"), cursor)}`);
      cards.append(...next.prototypes.map((prototype) => card(prototype, false)));
      cursor = next.cursor;
      more.hidden = !cursor;
    };
    section.append(more);
  }
  return section;
}

function card(prototype, large) {
  const { id, node, weight, usual, source } = prototype;
  const facts = [`weighs ${number(weight)}`, ...(usual === null ? [] : [`usual similarity ${number(usual)}`])];
  const flags = flagsOf(id).map((flag) => make("span", { className: "flag" }, flag));
  return make("li", { className: large ? "large" : "" },
    prototypePicture(id, large ? "context" : "patch", `prototype ${id}: a part of ${source.image}`),
    make("div", {},
      make("a", { href: `#prototypes&id=${id}` }, `prototype ${id}`),
      make("span", { className: "soft" }, ` of ${labelOf(node)}`),
      make("p", {}, facts.join(" · ")), ...flags, ...curated("switched off", prototype.off), ...curated("required", prototype.required),
      make("p", { className: "soft source", title: source.image }, large ? source.image : stem(source.image))));
}

/** Who switched a prototype off or insists on it, when and why. */
function curated(words, link) {
  if (!link) return [];
  return [make("p", { className: "supposed" }, make("b", {}, words), ` ${link.reason} (${link.by}, ${link.at.slice(0, 10)})`)];
}

function curatedList() {
  const { off = [], required = [] } = state.model ?? {};
  const lines = [...off.map((link) => [link, "switched off"]), ...required.map((link) => [link, "required"])].map(([link, words]) =>
    make("li", {}, make("a", { href: `#prototypes&id=${link.prototype}` }, `prototype ${link.prototype}`), ` of ${readable(link.node)}`, ...curated(words, link)));
  return make("ul", {}, ...lines);
}

/** What the audit says about a prototype, in the bundle's own numbering. */
function flagsOf(id) {
  const member = state.model?.members?.findLast(({ first_prototype: first }) => first <= id);
  const flags = (member ?? state.model)?.truth?.prototypes;
  if (!flags) return [];
  const own = id - (member?.first_prototype ?? 0);
  const words = { always_on: "always on", border: "at the border", off_object: "off the object", duplicates: "a duplicate" };
  return Object.entries(words).filter(([name]) => flags[name]?.includes(own)).map(([, text]) => text);
}

function truthCard() {
  const truth = state.model?.truth;
  if (!truth) return make("p", { className: "soft" }, "This model was not audited: protoserve audit --write measures how true its evidence is.");
  const line = ({ passed, statement }) => make("li", { className: passed ? "passed" : "failed" }, make("b", {}, passed ? "holds" : "fails"), ` ${statement}`);
  return make("details", { className: "truth" },
    make("summary", {}, `The truth card: ${truth.checks.filter(({ passed }) => passed).length} of ${truth.checks.length} statements hold on ${truth.images} pictures`),
    make("ul", {}, ...truth.checks.map(line)));
}
