// Requests to the service. All addresses are relative to the page's own, because a proxy may put a prefix before it.
import { $, make, state } from "./state.mjs";

const ROOT = location.origin + location.pathname.replace(/\/*$/, "/");
export const at = (path) => new URL(path, ROOT).href;

// The key stays in this tab. Browsers that forbid to store it ask for it again.
const stored = (action) => { try { return action(sessionStorage); } catch { return null; } };
state.key = stored((storage) => storage.getItem("key")) ?? "";

export function keepKey(key) {
  state.key = key;
  stored((storage) => storage.setItem("key", key));
  $("keyform").hidden = true;
}

export async function request(path, options = {}) {
  const headers = { ...options.headers, ...(state.key && { Authorization: `Bearer ${state.key}` }) };
  const response = await fetch(at(path), { ...options, headers });
  if (response.status === 401) $("keyform").hidden = false;
  return response;
}

/** The options of a request that sends an item's picture. */
export const sending = (item) => ({ method: "POST", body: item.sent, headers: { "Content-Type": "application/octet-stream" } });

/** What the service answers, as JSON. A problem becomes an Error whose `problem` is the document. */
export async function ask(path, options) {
  let response;
  try {
    response = await request(path, options);
  } catch (error) {
    throw Object.assign(new Error(`The service did not answer (${error.message}).`), { again: true });
  }
  const document = await response.json().catch(() => ({ title: `Status ${response.status}`, detail: "the answer is not JSON" }));
  if (response.ok) return document;
  const again = [401, 408, 429, 502, 503, 504].includes(response.status);
  throw Object.assign(new Error(`${document.title}: ${document.detail}`), { problem: document, again });
}

/** Show the picture at `path` in an image element, also where that needs a key, which elements can't send. */
export async function fill(image, path) {
  if (!state.key) {
    image.src = at(path);
    return;
  }
  const response = await request(path);
  if (!response.ok) return;
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(await response.blob());
}

/** An image element of a prototype; `view` is `patch` or `context`. It loads when it comes into view. */
export function prototypePicture(id, view, alt = "") {
  const image = make("img", { alt, className: view, loading: "lazy", width: 96, height: 96 });
  fill(image, `v1/prototypes/${id}/image?view=${view}`).catch(() => {});
  return image;
}
