// The page of the target `web`: decode a picture, run the graph, which resizes it, and show each level with its evidence.
import * as ort from "./ort.wasm.bundle.min.mjs";
import { contrastOf } from "./contrast.mjs";
import { box, geometry, seenBox } from "./geometry.mjs";

const SHOWN = 5;
const state = document.getElementById("state");
const input = document.getElementById("file");

function showState(text, error = false) {
  state.textContent = text;
  state.className = error ? "error" : "";
}

function element(name, text = "", parent = null) {
  const node = document.createElement(name);
  node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

/** A canvas with the picture: upright, on a white background, without colour conversion. */
async function decode(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}

/** The pixels of a canvas as a tensor, uint8 [1, height, width, 3]. */
function pixels(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Uint8Array(canvas.width * canvas.height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    colours[to++] = data[from];
    colours[to++] = data[from + 1];
    colours[to++] = data[from + 2];
  }
  return new ort.Tensor("uint8", colours, [1, canvas.height, canvas.width, 3]);
}

/** Where a prototype was found in the canvas, by its number and cell, and where it came from. */
function placesOf({ graph, input: rule, prototypes }, canvas) {
  const axes = geometry(rule, canvas.width, canvas.height);
  return (prototype, cell) => {
    const { source_image: image, source_box: square, picture: href } = prototypes[prototype];
    return { box: box(axes, graph, cell), seen: seenBox(axes, graph, cell), source: { image, box: square, href } };
  };
}

/** The graph's outputs as the service's JSON answer, without the fields that need the server. */
function documentOf(outputs, manifest, canvas) {
  const { graph, taxonomy, prototypes } = manifest;
  const names = taxonomy.nodes.map((node) => node.join("/"));
  const parents = taxonomy.nodes.map((node) => node.slice(0, -1).join("/"));
  const siblings = new Map();
  for (const parent of parents) siblings.set(parent, (siblings.get(parent) ?? 0) + 1);
  const inner = new Set(parents);
  const place = placesOf(manifest, canvas);
  const k = graph.top_k;
  const levels = [];
  let above = 0;
  const path = Array.from(outputs.path.data, Number).filter((node) => node >= 0);
  path.forEach((node, level) => {
    const logarithm = outputs.log_probability.data[node];
    // In a flat model all leaves compete with each other; in a hierarchical one only siblings do.
    const only = siblings.get(parents[node]) === 1;
    const headed = manifest.kind === "hierarchical" ? !only : !inner.has(names[node]);
    const evidence = [], against = [];
    for (const [kind, sign, pieces] of [["evidence", 1, evidence], ["against", -1, against]]) {
      const of = (name, rank) => Number(outputs[`${kind}_${name}`].data[rank]);
      for (let rank = level * k; headed && rank < level * k + Math.min(k, SHOWN); rank++) {
        const prototype = of("prototype", rank), contribution = of("contribution", rank);
        if (prototype < 0 || sign * contribution <= 0) break;
        const record = prototypes[prototype];
        pieces.push({
          prototype,
          similarity: of("similarity", rank),
          usual: record.usual ?? 0,
          weight: of("weight", rank),
          contribution,
          ...place(prototype, of("cell", rank)),
        });
      }
    }
    const total = (pieces) => pieces.reduce((sum, piece) => sum + piece.contribution, 0);
    const positive = outputs.positive_contribution.data[level];
    const logit = headed ? outputs.logit.data[node] : null, prior = headed ? (manifest.prior[names[node]] ?? 0) : null;
    levels.push({
      level: level + 1,
      node: names[node],
      label: taxonomy.nodes[node].at(-1),
      probability: Math.exp(Math.min(logarithm, 0)),
      conditional: only && !headed ? 1 : Math.exp(Math.min(logarithm - above, 0)),
      forced: only && !headed,
      logit,
      prior,
      rest: headed ? logit - prior - total(evidence) - total(against) : null,
      evidence_share: headed && positive > 0 ? Math.min(1, total(evidence) / positive) : 1,
      evidence,
      against,
    });
    above = logarithm;
  });
  return {
    model: { name: manifest.name, version: manifest.version },
    image: { width: canvas.width, height: canvas.height },
    path: taxonomy.nodes[path.at(-1)],
    levels,
  };
}

const round = (value) => Math.round(100 * value) / 100 || 0;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const number = (value) => value.toFixed(2).replace("-", "−");

/** A level's score and its parts. Contributions are rounded one by one, as shown, and the rest closes the sum. */
function sumOf(level) {
  const total = (pieces) => round(pieces.reduce((sum, piece) => sum + round(piece.contribution), 0));
  const [logit, prior, supporting, opposing] = [round(level.logit), round(level.prior), total(level.evidence), total(level.against)];
  const parts = [[prior, "prior"], [supporting, "for"], [opposing, "against"], [round(logit - prior - supporting - opposing), "rest"]];
  const share = `${(100 * level.evidence_share).toFixed(0)} % of what speaks for it is shown`;
  return `score ${number(logit)} = ${parts.map(([value, name]) => `${signed(value)} ${name}`).join(", ")}; ${share}`;
}

/** Whether the picture is less similar to the prototype than usual, even at the most similar place. */
const isAbsence = (piece) => piece.similarity < piece.usual;

/** A list of evidence; pointing at a card calls `point` with its piece. */
function cards(pieces, section, point) {
  const list = element("ol", "", section);
  for (const piece of pieces) {
    const item = element("li", "", list);
    item.tabIndex = 0;
    item.className = piece.contribution < 0 ? "against" : "";
    const image = element("img", "", item);
    image.src = piece.source.href;
    image.alt = `prototype ${piece.prototype}, from ${piece.source.image}`;
    element("b", signed(piece.contribution), item);
    const usual = `${piece.usual < 0 ? "+" : "−"} ${number(Math.abs(piece.usual))}`;
    element("span", `${number(piece.weight)} ×`, item);
    element("span", `(${number(piece.similarity)} ${usual})`, item);
    element("small", isAbsence(piece) ? "less than usual like this" : "looks like this", item);
    for (const event of ["mouseenter", "focus"]) item.addEventListener(event, () => point(piece));
  }
}

function show(answer, canvas) {
  const picture = document.getElementById("picture");
  const levels = document.getElementById("levels");
  picture.replaceChildren(canvas);
  levels.replaceChildren();
  const [seen, frame] = ["seen", "box"].map((name) => Object.assign(element("i", "", picture), { className: name, hidden: true }));
  const place = (outline, [left, top, right, bottom]) => {
    const across = (x) => `${(100 * x) / canvas.width}%`, down = (y) => `${(100 * y) / canvas.height}%`;
    Object.assign(outline.style, { left: across(left), top: down(top), width: across(right - left), height: down(bottom - top) });
    outline.hidden = false;
  };
  // The thin frame is what the network mostly saw for the box, where it is not tiled.
  const point = (piece) => {
    place(frame, piece.box);
    frame.style.borderStyle = isAbsence(piece) ? "dashed" : "solid";
    if (piece.seen) place(seen, piece.seen);
    else seen.hidden = true;
  };
  for (const level of answer.levels) {
    const section = element("section", "", levels);
    const heading = element("h2", level.label + " ", section);
    element("small", `${(100 * level.probability).toFixed(1)} %${level.forced ? ", the only child" : ""}`, heading);
    cards(level.evidence, section, point);
    if (level.against.length) element("h3", "speaks against it", section);
    cards(level.against, section, point);
    if (level.logit !== null) element("p", sumOf(level), section);
  }
  const first = answer.levels.flatMap((level) => level.evidence)[0];
  if (first) point(first);
  document.getElementById("answer").hidden = false;
  return point;
}

/** Show why the answer is not another class. */
function showContrast(contrast, point) {
  const section = document.getElementById("contrast");
  section.replaceChildren();
  const last = (node) => node.split("/").at(-1);
  if (contrast.relation !== "beside") {
    const words = contrast.relation === "predicted" ? "is part of the answer" : "lies below the answer: nothing speaks against it";
    element("p", `${last(contrast.node)} ${words}.`, section);
    return;
  }
  const heading = element("h2", `Why ${last(contrast.predicted)} and not ${last(contrast.instead)} `, section);
  element("small", contrast.path.map(({ label, probability }) => `${label} ${(100 * probability).toFixed(1)} %`).join(" › "), heading);
  // A card's weight is by how much more the prototype counts for the predicted class.
  const cardOf = (piece) => {
    const unusual = piece.similarity - piece.usual;
    return { ...piece, contribution: piece.difference, weight: unusual ? piece.difference / unusual : 0 };
  };
  cards(contrast.evidence.map(cardOf), section, point);
  if (contrast.missing.length) element("h3", `not found of ${last(contrast.instead)}`, section);
  cards(contrast.missing.map(cardOf), section, point);
  const total = (pieces) => round(pieces.reduce((sum, piece) => sum + round(piece.difference), 0));
  const [lead, prior, shown, missing] = [round(contrast.logit_difference), round(contrast.prior_difference), total(contrast.evidence), total(contrast.missing)];
  const parts = [[prior, "prior"], [shown, "shown"], [missing, "not found"], [round(lead - prior - shown - missing), "rest"]];
  element("p", `lead ${number(lead)} = ${parts.map(([value, name]) => `${signed(value)} ${name}`).join(", ")}`, section);
}

let current = null;

/** Ask why the answer is not the node that was named. The network does not run again. */
function whyNot(manifest, weights) {
  const asked = document.getElementById("other").value.trim();
  if (!current || !asked) return;
  const { outputs, canvas, prediction, point } = current;
  const contrast = contrastOf(outputs, manifest, weights, asked, placesOf(manifest, canvas));
  if (contrast === null) {
    document.getElementById("contrast").replaceChildren(element("p", `There is no class ${asked}; choose one of the list.`));
    return;
  }
  showContrast(contrast, point);
  document.getElementById("document").textContent = JSON.stringify({ ...prediction, contrast });
}

async function answer(session, manifest, file) {
  showState("Running the network …");
  document.getElementById("document").textContent = "";
  const canvas = await decode(file);
  const began = performance.now();
  const outputs = await session.run({ image: pixels(canvas) });
  const prediction = documentOf(outputs, manifest, canvas);
  current = { outputs, canvas, prediction, point: show(prediction, canvas) };
  document.getElementById("contrast").replaceChildren();
  document.getElementById("document").textContent = JSON.stringify(prediction);
  showState(`${prediction.path.join(" › ")} (${Math.round(performance.now() - began)} ms)`);
}

async function start() {
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  // Several threads need HTTP headers that a plain file server does not send.
  ort.env.wasm.numThreads = 1;
  const [loaded, weights, session] = await Promise.all([
    fetch("model.json").then((response) => response.json()),
    fetch("weights.bin").then(async (response) => new Float32Array(await response.arrayBuffer())),
    ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] }),
  ]);
  const { manifest } = loaded;
  document.getElementById("name").textContent = document.title = manifest.name;
  // A tile's box holds all that the network saw.
  document.getElementById("seen-hint").hidden = Boolean(manifest.graph.tile);
  const failed = (error) => showState(`The picture could not be classified: ${error.message ?? error}`, true);
  input.addEventListener("change", () => {
    if (input.files.length) answer(session, manifest, input.files[0]).catch(failed);
  });
  for (const node of manifest.taxonomy.nodes) element("option", "", document.getElementById("nodes")).value = node.join("/");
  document.getElementById("other").addEventListener("change", () => whyNot(manifest, weights));
  input.disabled = false;
  showState("Ready.");
}

start().catch((error) => showState(`The network could not be loaded: ${error.message ?? error}`, true));
