// What the page knows, and the two functions that make elements.

export const state = {
  /** One entry per picture: {file, name, sent, prediction, picture, error, options}. */
  items: [],
  current: null,
  level: 0,
  /** The number of the piece that is pointed at or focused, and of the one that was kept by a click or Enter. */
  pointed: null,
  kept: null,
  off: new Set(),
  /** The level that is shown, or a contrast in its form. */
  shown: null,
  /** Options of requests beyond those with a control: name → value. */
  options: new Map(),
  model: null,
  nodes: null,
  key: "",
};

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function draw(tag, attributes = {}) {
  const element = document.createElementNS($("overlay").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function download(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
