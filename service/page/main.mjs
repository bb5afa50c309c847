// Wires the page: the views, the options, the key, the keyboard.
import { answer, leave, optionsChanged, query } from "./answer.mjs";
import { ask, at, keepKey, request } from "./service.mjs";
import { drawFrames } from "./picture.mjs";
import { keep, point } from "./evidence.mjs";
import { listen, offerSamples } from "./upload.mjs";
import { listenToShares } from "./share.mjs";
import { showPrototypes } from "./prototypes.mjs";
import { $, state } from "./state.mjs";

async function describe() {
  const model = await ask("v1/model").catch(() => null);
  if (!model) return;
  state.model = model;
  const levels = model.depth === 1 ? "" : ` on ${model.depth} levels`;
  $("model").textContent = `${model.name} · ${model.leaves} classes${levels} · ${model.prototypes} prototypes`;
  $("model").title = model.version;
  $("top_k").max = model.top_k;
  $("top_k").value = Math.min(Number($("top_k").value), model.top_k);
  offerSamples();
  const names = Object.keys(model.lists ?? {});
  $("lists").hidden = !names.length;
  $("lists").querySelector("select").replaceChildren(...["", ...names].map((name) => new Option(name || "all", name)));
}

/** The view and the options that the page's address keeps: `#prototypes&node=…` or `#top_k=3&maps=heat`. */
function follow() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const browsing = parameters.has("prototypes");
  $("explain").hidden = browsing;
  $("prototypes").hidden = !browsing;
  for (const [id, current] of [["to-explain", !browsing], ["to-prototypes", browsing]]) {
    if (current) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
  if (browsing) {
    // The way back keeps the options.
    $("to-explain").href = `#${query()}`;
    return showPrototypes(parameters);
  }
  if (parameters.has("top_k")) $("top_k").value = parameters.get("top_k");
  $("heat-on").checked = parameters.get("maps") === "heat";
  for (const [name, value] of parameters) if (!["top_k", "maps"].includes(name)) state.options.set(name, value);
  for (const input of document.querySelectorAll("[data-option]")) input.value = state.options.get(input.dataset.option) ?? "";
  drawFrames();
}

$("heat-on").onchange = $("top_k").onchange = optionsChanged;
for (const input of document.querySelectorAll("[data-option]")) {
  input.onchange = () => {
    if (input.value) state.options.set(input.dataset.option, input.value);
    else state.options.delete(input.dataset.option);
    optionsChanged();
  };
}
$("keyform").onsubmit = async (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  await describe();
  follow();
  if (state.current) answer(state.current);
};
for (const link of document.querySelectorAll("a.document")) {
  const path = link.getAttribute("href");
  link.href = at(path);
  link.onclick = async (event) => {
    if (!state.key) return;
    event.preventDefault();
    location.href = URL.createObjectURL(await (await request(path)).blob());
  };
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
  leave();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
const pieceAt = (event) => Number(event.target.closest("[data-piece]")?.dataset.piece) || null;
$("overlay").addEventListener("pointermove", (event) => pieceAt(event) && point(pieceAt(event)));
$("overlay").addEventListener("pointerleave", () => point(null));
$("overlay").addEventListener("click", (event) => {
  keep(pieceAt(event));
  document.querySelector(`.piece[data-piece="${pieceAt(event)}"]`)?.scrollIntoView({ block: "nearest" });
});
new ResizeObserver(drawFrames).observe($("frame"));
window.addEventListener("hashchange", follow);
listen();
listenToShares();
describe().then(follow);
