// Pictures come in: chosen, dropped, pasted or taken; those that are too large for the service are shrunk.
import { answer, choose, showMessage } from "./answer.mjs";
import { fill, request } from "./service.mjs";
import { $, make, state } from "./state.mjs";

// The longer side of a picture that had to be shrunk.
const SHRUNK = 2048;

/** Ask about files, one after another, and show the first one at once. */
export async function take(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  const items = pictures.map((file) => ({ file, name: file.name || "pasted picture", sent: file, prediction: null, picture: null, error: null }));
  const [first] = items;
  // An answer that is on the page stays there until there is another.
  const before = state.current;
  await prepare(first);
  if (!first.error) await answer(first);
  if (first.error && items.length === 1 && before?.prediction) {
    showMessage(first.error, first.error.again ? () => take(files) : null);
    return;
  }
  state.items = items;
  choose(first);
  for (const item of items.slice(1)) {
    if (state.items !== items) return;
    await prepare(item);
    if (!item.error) await answer(item);
    else choose(state.current);
  }
}

async function prepare(item) {
  const { file } = item;
  if (/^(text|application|video|audio)\//.test(file.type) && file.type !== "application/octet-stream") {
    item.error = new Error(`${item.name} is not a picture (${file.type}). Choose a JPEG, PNG, WebP, TIFF or HEIC file.`);
    return;
  }
  if (!file.size) {
    item.error = new Error(`${item.name} is empty. Choose another file.`);
    return;
  }
  const limits = state.model?.limits;
  if (!limits) return;
  const bitmap = file.size > limits.request_bytes / 2 ? await createImageBitmap(file).catch(() => null) : null;
  const tooLarge = file.size > limits.request_bytes
    || (bitmap && (bitmap.width * bitmap.height > limits.image_pixels || Math.max(bitmap.width, bitmap.height) > limits.image_side));
  if (!tooLarge) return;
  if (!bitmap) {
    item.error = new Error(`${item.name} has ${megabytes(file.size)} MB; the service takes ${megabytes(limits.request_bytes)}, and your browser can't shrink this format. Save it as a JPEG.`);
    return;
  }
  item.sent = await shrink(bitmap);
  item.shrunk = true;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

function shrink(bitmap) {
  const scale = Math.min(1, SHRUNK / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

/** Offer the pictures that came with the model. */
export function offerSamples() {
  const count = Math.min(state.model?.samples ?? 0, 8);
  if (!count || !$("samples").hidden) return;
  for (let sample = 0; sample < count; sample++) {
    const image = make("img", { alt: "", width: 96, height: 96 });
    fill(image, `v1/samples/${sample}`).catch(() => {});
    const button = make("button", { aria: { label: `sample picture ${sample + 1}` } }, image);
    button.onclick = async () => {
      const response = await request(`v1/samples/${sample}`);
      if (response.ok) take([new File([await response.blob()], `sample-${sample}.png`, { type: "image/png" })]);
    };
    $("samples").append(button);
  }
  $("samples").hidden = false;
}

/** Listen to all ways in which pictures come. */
export function listen() {
  for (const input of [$("file"), $("camera")]) {
    input.onchange = () => {
      // Resetting the input would empty a list that is still read.
      take([...input.files]);
      input.value = "";
    };
  }
  document.addEventListener("paste", (event) => {
    const { files } = event.clipboardData;
    if (files.length) take(files);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", name === "dragover");
      if (name === "drop") dropped(event.dataTransfer);
    });
  }
}

function dropped({ files, types }) {
  if (files.length) take(files);
  else if (types.includes("text/uri-list")) {
    showMessage(new Error("That is an address. Nothing is fetched from other places: save the picture and drop the file."));
  } else showMessage(new Error("That is not a file. Drop a picture from a folder, or paste one."));
}
