// The answer: how far it goes, its levels, and the panel of the active one.
import { contrastLevel, extent, percent, readable, sentence } from "./words.mjs";
import { ask, sending } from "./service.mjs";
import { drawFrames, readPicture, showPicture } from "./picture.mjs";
import { evidenceList, keep, point } from "./evidence.mjs";
import { actions, alternativesOf, contrastWords, supposed } from "./acting.mjs";
import { $, make, state } from "./state.mjs";

/** The options as the query that the service reads. */
export function query() {
  const chosen = new URLSearchParams({ top_k: $("top_k").value || "0" });
  if ($("heat-on").checked) chosen.set("maps", "heat");
  for (const [name, value] of state.options) chosen.set(name, value);
  return chosen;
}

/** Ask the service about an item. An error keeps the answer and the picture that the item had. */
export async function answer(item) {
  const asked = (item.asked = query().toString());
  $("explain").classList.add("busy");
  try {
    const prediction = await ask(`v1/predict?${asked}`, sending(item));
    if (asked !== item.asked) return;
    Object.assign(item, { prediction, error: null });
    if (item === state.current) state.off.clear();
    item.picture ??= await readPicture(item);
  } catch (error) {
    if (asked !== item.asked) return;
    item.error = error;
  } finally {
    $("explain").classList.remove("busy");
  }
  if (item === state.current) showItem();
  showStrip();
}

export async function answerAll() {
  for (const item of state.items) await answer(item);
}

/** Make an item the current one. */
export function choose(item) {
  state.current = item;
  state.level = null;
  state.off.clear();
  state.kept = state.pointed = null;
  showItem();
  showStrip();
}

function showItem() {
  const { prediction, error } = state.current;
  showMessage(error, error?.again ? () => answer(state.current) : null);
  if (!prediction) return;
  const held = extent(prediction);
  $("explain").classList.remove("empty");
  $("title").textContent = held.title;
  $("title").className = held.sure ? "" : held.levels ? "part" : "none";
  $("verdict").textContent = held.reason;
  $("live").textContent = sentence(prediction);
  document.title = `${held.title} · ProtoServe`;
  state.level = Math.min(state.level ?? firstLevel(prediction, held.levels), prediction.levels.length - 1);
  showPicture();
  showLevels(prediction, held.levels);
  showPanel();
  $("body").hidden = false;
}

/** The deepest level that holds and has evidence; without any, the deepest that has evidence. */
function firstLevel({ levels }, held) {
  const told = levels.map((level, index) => (level.evidence.length ? index : -1)).filter((index) => index >= 0);
  return told.filter((index) => index < held).at(-1) ?? told[0] ?? Math.max(0, held - 1);
}

/** Say what is wrong and what to do, above the answer that stays. */
export function showMessage(error, retry = null) {
  $("message").hidden = !error;
  if (!error) return;
  const again = retry && make("button", { textContent: "Try again", onclick: retry });
  $("message").replaceChildren(make("span", {}, error.message), again ?? "");
  $("live").textContent = error.message;
}

function showLevels({ levels }, held) {
  const tabs = levels.map((level, index) => {
    const open = index >= held;
    const tab = make("button", { id: `level-${index}`, className: open ? "open" : "", aria: { role: "tab", controls: "panel" } },
      make("span", {}, readable(level.label)),
      make("small", {}, percent(level.probability) + (open ? " · a guess" : "")));
    tab.onclick = tab.onfocus = () => activate(index);
    return tab;
  });
  $("levels").replaceChildren(...tabs);
  $("levels").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) tabs[(state.level + step + tabs.length) % tabs.length].focus();
  };
  markLevel();
}

function markLevel() {
  [...$("levels").children].forEach((tab, index) => {
    tab.setAttribute("aria-selected", String(index === state.level));
    tab.tabIndex = index === state.level ? 0 : -1;
  });
  $("panel").setAttribute("aria-labelledby", `level-${state.level}`);
}

function activate(index) {
  if (index === state.level) return;
  state.level = index;
  state.off.clear();
  state.kept = state.pointed = null;
  markLevel();
  showPanel();
}

function showPanel() {
  state.shown = state.current.prediction.levels[state.level];
  $("panel").replaceChildren(...supposed(), ...alternativesOf(state.shown, whyNot), ...evidenceList(state.shown), actions(state.shown, optionsChanged));
  drawFrames();
}

/** Why not this node: what tells it from the predicted one, in place of the evidence. */
async function whyNot(node) {
  const item = state.current, asked = query();
  asked.set("contrast", node);
  try {
    const { contrast } = await ask(`v1/predict?${asked}`, sending(item));
    if (item !== state.current) return;
    state.off.clear();
    state.kept = state.pointed = null;
    const back = make("button", { textContent: "Back to the evidence", onclick: () => { showPanel(); $(`level-${state.level}`).focus(); } });
    const comparable = contrast.relation === "beside";
    state.shown = comparable ? contrastLevel(contrast) : null;
    $("panel").replaceChildren(contrastWords(contrast), ...(comparable ? evidenceList(state.shown) : []), make("p", { className: "actions" }, back));
    $("live").textContent = $("panel").firstChild.textContent;
    back.focus({ preventScroll: true });
    drawFrames();
  } catch (error) {
    showMessage(error, error.again ? () => whyNot(node) : null);
  }
}

/** Ask again with other options; the address of the page keeps them. */
export function optionsChanged() {
  history.replaceState(null, "", `#${query()}`);
  if (state.current) answerAll();
}

/** Escape lets go of a piece, then of the list. */
export function leave() {
  if (state.kept === null && state.pointed === null) return;
  keep(null);
  point(null);
  if ($("panel").contains(document.activeElement)) $(`level-${state.level}`).focus();
}

function showStrip() {
  $("strip").hidden = state.items.length < 2;
  $("strip").replaceChildren(...state.items.map((item) => {
    const title = item.prediction ? extent(item.prediction).title : item.error ? "no answer" : "…";
    const canvas = make("canvas", { width: 96, height: 96 });
    if (item.picture) {
      const { source } = item.picture, side = Math.min(source.width, source.height);
      canvas.getContext("2d").drawImage(source, (source.width - side) / 2, (source.height - side) / 2, side, side, 0, 0, 96, 96);
    }
    const button = make("button", { title: item.name, aria: { current: String(item === state.current), label: `${item.name}: ${title}` } },
      canvas, make("span", {}, title));
    button.onclick = () => choose(item);
    return make("li", {}, button);
  }));
}
