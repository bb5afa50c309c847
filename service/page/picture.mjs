// The sender's picture: how it is drawn, the frames and numbers on it, its heat map, and the crops beside the evidence.
import { cropSquare, frameAround, mapRegion, numberPlaces } from "./geometry.mjs";
import { BRIGHTEST, heatColour } from "./heat.mjs";
import { absent, piecesOf } from "./words.mjs";
import { $, draw, make, state } from "./state.mjs";
import { request, sending } from "./service.mjs";

// A larger picture is drawn at this many pixels on its longer side.
const DRAWN = 3000;
const STROKE = 3, HALO = 5.5, RADIUS = 10;
/** The picture of an item as {source, scale}, with `scale` drawn pixels per pixel of the sender's. */
export async function readPicture(item) {
  const { width, height } = item.prediction.image;
  const scale = Math.min(1, DRAWN / Math.max(width, height));
  const size = scale < 1 ? { resizeWidth: Math.max(1, Math.round(width * scale)), resizeHeight: Math.max(1, Math.round(height * scale)) } : {};
  try {
    const source = await createImageBitmap(item.sent, { imageOrientation: "from-image", ...size });
    return { source, scale: source.width / width, own: true };
  } catch {
    return { source: await asTheNetworkGotIt(item, scale), scale, own: false };
  }
}

// Browsers can't draw some formats that the service accepts, such as TIFF: show what the network got, in its place.
async function asTheNetworkGotIt(item, scale) {
  const { image } = item.prediction;
  const canvas = make("canvas", { width: Math.max(1, image.width * scale), height: Math.max(1, image.height * scale) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#8a8f98";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const response = await request("v1/input", sending(item)).catch(() => null);
  if (!response?.ok || !state.model) return canvas;
  const { x, y } = mapRegion({}, state.model.input, image, 1, 1);
  const input = await createImageBitmap(await response.blob());
  context.drawImage(input, x.seen[0] * scale, y.seen[0] * scale, x.seen[1] * scale, y.seen[1] * scale);
  return canvas;
}

export function showPicture() {
  const { picture, prediction, name } = state.current;
  const canvas = $("canvas");
  canvas.width = picture.source.width;
  canvas.height = picture.source.height;
  canvas.getContext("2d").drawImage(picture.source, 0, 0);
  canvas.setAttribute("aria-label", `your picture ${name}`);
  const { width, height } = prediction.image;
  const frame = $("frame");
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.setProperty("--ratio", width / height);
  frame.classList.toggle("enlarged", Math.max(width, height) < 64);
  $("invite").hidden = true;
  frame.hidden = $("tools").hidden = false;
  const notes = [];
  if (!picture.own) {
    const { input } = state.model ?? {};
    notes.push(`Your browser can't draw this format. You see what the network got${input ? `: ${input.width} × ${input.height} pixels` : ""}.`);
  }
  if (state.current.shrunk) notes.push(`Shrunk to ${width} × ${height} pixels before it was sent.`);
  $("note").textContent = notes.join(" ");
  $("note").hidden = !notes.length;
  drawFrames();
}

/** Draw the frames of the active level, in display pixels: all that speak for its node, or the one that is chosen. */
export function drawFrames() {
  const { prediction } = state.current ?? {};
  const level = state.shown;
  const overlay = $("overlay");
  if (!level || !prediction || $("frame").hidden) return;
  const { width, height } = $("frame").getBoundingClientRect();
  // Of the longer side, where rounding to display pixels shifts least.
  const scale = Math.max(width, height) / Math.max(prediction.image.width, prediction.image.height);
  overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const chosen = state.pointed ?? state.kept;
  const pieces = piecesOf(level).filter(({ number, kind, item }) => chosen === null
    ? kind === "evidence" && !state.off.has(number) && !(level.contrast && absent(item))
    : number === chosen);
  const frames = pieces.map(({ item }) => frameAround(item.box, scale, HALO));
  const places = numberPlaces(frames, RADIUS, { width, height });
  const seen = pieces.filter(({ item }) => item.seen && chosen !== null).flatMap(({ item }) =>
    ["under", "over"].map((layer) => draw("rect", { class: `seen ${layer}`, ...frameAround(item.seen, scale, 0) })));
  const marks = (shapes) => pieces.map(({ kind, number, item }, index) => {
    const mark = draw("g", { class: `mark ${kind}`, "data-piece": number });
    mark.append(...shapes(item, number, frames[index], ...places[index]));
    return mark;
  }).reverse();
  const outlines = marks((item, number, frame) => [
    draw("rect", { class: "halo", "stroke-width": HALO, ...frame }),
    draw("rect", { class: "stroke", "stroke-width": STROKE, ...frame, ...(absent(item) && { "stroke-dasharray": "6 4" }) }),
  ]);
  const numbers = marks((item, number, frame, x, y) => {
    const label = draw("text", { x, y, "text-anchor": "middle", "dominant-baseline": "central" });
    label.textContent = number;
    return [draw("circle", { cx: x, cy: y, r: RADIUS }), label];
  });
  // The strongest lies on top, and all numbers on all frames.
  overlay.replaceChildren(...seen, ...outlines, ...numbers);
  drawHeat(level, pieces);
}

// On a fixed scale of logits: a piece that adds nothing does not glow, however its map looks.
function drawHeat(level, pieces) {
  const canvas = $("heat");
  const shown = $("heat-on").checked ? pieces.find(({ kind, item }) => kind === "evidence" && item.map) : null;
  canvas.hidden = !shown;
  $("canvas").classList.toggle("grey", Boolean(shown));
  $("scale").hidden = !$("heat-on").checked;
  if (!shown) {
    $("scale").textContent = "This piece has no heat map.";
    return;
  }
  $("scale").textContent = `Heat of piece ${shown.number}: dark where the picture is no more similar than usual, yellow where a cell would add ${BRIGHTEST} or more.`;
  const { map, member, weight, usual } = shown.item;
  const { image } = state.current.prediction;
  const rows = map.length, columns = map[0].length;
  const { x, y } = mapRegion(state.model.members?.[member] ?? state.model, state.model.input, image, rows, columns);
  const cells = make("canvas", { width: x.before + columns + x.after, height: y.before + rows + y.after });
  const pixels = cells.getContext("2d");
  const values = pixels.createImageData(cells.width, cells.height);
  const inside = (index, count) => Math.min(Math.max(index, 0), count - 1);
  for (let row = 0; row < cells.height; row++) {
    for (let column = 0; column < cells.width; column++) {
      const similarity = map[inside(row - y.before, rows)][inside(column - x.before, columns)];
      values.data.set(heatColour((weight * (similarity - usual)) / BRIGHTEST), 4 * (row * cells.width + column));
    }
  }
  pixels.putImageData(values, 0, 0);
  const scale = $("canvas").width / image.width;
  canvas.width = $("canvas").width;
  canvas.height = $("canvas").height;
  const context = canvas.getContext("2d");
  context.beginPath();
  context.rect(x.seen[0] * scale, y.seen[0] * scale, x.seen[1] * scale, y.seen[1] * scale);
  context.clip();
  context.drawImage(cells, x.start * scale, y.start * scale, x.length * scale, y.length * scale);
}

/** A square canvas of the part of the picture around a box, with its frame. */
export function crop(item, kind, size) {
  const { picture, prediction } = state.current;
  const canvas = make("canvas", { className: "crop", width: size, height: size });
  const context = canvas.getContext("2d");
  const { x, y, side } = cropSquare(item.box, prediction.image);
  const zoom = size / side, { scale, source } = picture;
  context.imageSmoothingEnabled = side > 24;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, x * scale, y * scale, side * scale, side * scale, 0, 0, size, size);
  const [left, top, right, bottom] = item.box;
  const style = getComputedStyle(document.documentElement);
  const frame = frameAround([left - x, top - y, right - x, bottom - y], zoom, 6);
  // At the edge of the crop the frame moves inwards.
  const near = (value) => Math.min(Math.max(value, 3), size - 3);
  const ends = [near(frame.x), near(frame.y), near(frame.x + frame.width), near(frame.y + frame.height)];
  for (const [width, ink] of [[9, "#fff"], [5, style.getPropertyValue(kind === "evidence" ? "--mark-for" : "--mark-against")]]) {
    context.lineWidth = width;
    context.strokeStyle = ink;
    context.setLineDash(absent(item) && ink !== "#fff" ? [12, 8] : []);
    context.strokeRect(ends[0], ends[1], ends[2] - ends[0], ends[3] - ends[1]);
  }
  return canvas;
}
