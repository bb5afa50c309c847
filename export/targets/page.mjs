// The page of the target `web`: decode a picture, run the graph, which resizes it, and show each level with its evidence.
import * as ort from "./ort.wasm.bundle.min.mjs";

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

/** Per axis, the map from the model's pixels to the picture's by the manifest's rule: x = scale · model_x + offset. */
function geometry(rule, width, height) {
  const wider = width * rule.height >= height * rule.width;
  let across = width, down = height, columns = rule.width, rows = rule.height;
  if (rule.resize === "crop") {
    across = (wider ? Math.min((height * rule.width) / rule.height, width) : width) * rule.share;
    down = (wider ? height : Math.min((width * rule.height) / rule.width, height)) * rule.share;
  } else if (rule.resize === "pad") {
    const quotient = (a, b) => Math.max(1, Math.floor((2 * a + b) / (2 * b)));
    if (wider) rows = quotient(height * rule.width, width);
    else columns = quotient(width * rule.height, height);
  }
  const axis = (length, part, size, target) => {
    const scale = part / size;
    return { length, target, scale, offset: (length - part) / 2 - scale * Math.floor((target - size) / 2) };
  };
  return [axis(width, across, columns, rule.width), axis(height, down, rows, rule.height)];
}

/** A cell's left, top, right and bottom in the picture's pixels; right and bottom are exclusive. */
function box(axes, graph, cell) {
  const reach = Math.floor((graph.span ?? 1) / 2);
  const ends = axes.map(({ length, target, scale, offset }, axis) => {
    const cells = axis === 0 ? graph.columns : graph.rows;
    const index = axis === 0 ? cell % graph.columns : Math.floor(cell / graph.columns);
    const step = (scale * target) / cells;
    const pixel = (edge) => Math.floor(offset + step * edge + 0.5);
    const first = Math.min(Math.max(pixel(Math.max(0, index - reach)), 0), length - 1);
    const last = Math.min(pixel(Math.min(cells, index + reach + 1)), length);
    return [first, Math.max(last, first + 1)];
  });
  return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]];
}

/** The graph's outputs as the service's JSON answer, without the fields that need the server. */
function documentOf(outputs, manifest, canvas) {
  const { graph, taxonomy, prototypes } = manifest;
  const names = taxonomy.nodes.map((node) => node.join("/"));
  const parents = taxonomy.nodes.map((node) => node.slice(0, -1).join("/"));
  const siblings = new Map();
  for (const parent of parents) siblings.set(parent, (siblings.get(parent) ?? 0) + 1);
  const inner = new Set(parents);
  const axes = geometry(manifest.input, canvas.width, canvas.height);
  const k = graph.top_k;
  const levels = [];
  let above = 0;
  const path = Array.from(outputs.path.data, Number).filter((node) => node >= 0);
  path.forEach((node, level) => {
    const logarithm = outputs.log_probability.data[node];
    // In a flat model all leaves compete with each other; in a hierarchical one only siblings do.
    const only = siblings.get(parents[node]) === 1;
    const headed = manifest.kind === "hierarchical" ? !only : !inner.has(names[node]);
    const evidence = [];
    for (let rank = level * k; headed && rank < level * k + Math.min(k, SHOWN); rank++) {
      const prototype = Number(outputs.evidence_prototype.data[rank]);
      if (prototype < 0) break;
      const record = prototypes[prototype];
      evidence.push({
        prototype,
        similarity: outputs.evidence_similarity.data[rank],
        weight: outputs.evidence_weight.data[rank],
        contribution: outputs.evidence_contribution.data[rank],
        box: box(axes, graph, Number(outputs.evidence_cell.data[rank])),
        source: { image: record.source_image, box: record.source_box, href: record.picture },
      });
    }
    levels.push({
      level: level + 1,
      node: names[node],
      label: taxonomy.nodes[node].at(-1),
      probability: Math.exp(Math.min(logarithm, 0)),
      conditional: only && !headed ? 1 : Math.exp(Math.min(logarithm - above, 0)),
      forced: only && !headed,
      logit: headed ? outputs.logit.data[node] : null,
      evidence,
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

function show(answer, canvas) {
  const picture = document.getElementById("picture");
  const levels = document.getElementById("levels");
  picture.replaceChildren(canvas);
  levels.replaceChildren();
  const frame = element("i", "", picture);
  frame.hidden = true;
  const point = ([left, top, right, bottom]) => {
    const across = (x) => `${(100 * x) / canvas.width}%`, down = (y) => `${(100 * y) / canvas.height}%`;
    Object.assign(frame.style, { left: across(left), top: down(top), width: across(right - left), height: down(bottom - top) });
    frame.hidden = false;
  };
  for (const level of answer.levels) {
    const section = element("section", "", levels);
    const heading = element("h2", level.label + " ", section);
    element("small", `${(100 * level.probability).toFixed(1)} %${level.forced ? ", the only child" : ""}`, heading);
    const list = element("ol", "", section);
    for (const evidence of level.evidence) {
      const item = element("li", "", list);
      item.tabIndex = 0;
      const image = element("img", "", item);
      image.src = evidence.source.href;
      image.alt = `prototype ${evidence.prototype}, from ${evidence.source.image}`;
      element("span", `${evidence.contribution < 0 ? "" : "+"}${evidence.contribution.toFixed(2)} = ${evidence.similarity.toFixed(2)} × ${evidence.weight.toFixed(2)}`, item);
      for (const event of ["mouseenter", "focus"]) item.addEventListener(event, () => point(evidence.box));
    }
  }
  const first = answer.levels.flatMap((level) => level.evidence)[0];
  if (first) point(first.box);
  document.getElementById("answer").hidden = false;
}

async function answer(session, manifest, file) {
  showState("Running the network …");
  document.getElementById("document").textContent = "";
  const canvas = await decode(file);
  const began = performance.now();
  const outputs = await session.run({ image: pixels(canvas) });
  const prediction = documentOf(outputs, manifest, canvas);
  show(prediction, canvas);
  document.getElementById("document").textContent = JSON.stringify(prediction);
  showState(`${prediction.path.join(" › ")} (${Math.round(performance.now() - began)} ms)`);
}

async function start() {
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  // Several threads need HTTP headers that a plain file server does not send.
  ort.env.wasm.numThreads = 1;
  const [loaded, session] = await Promise.all([
    fetch("model.json").then((response) => response.json()),
    ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] }),
  ]);
  const { manifest } = loaded;
  document.getElementById("name").textContent = document.title = manifest.name;
  const failed = (error) => showState(`The picture could not be classified: ${error.message ?? error}`, true);
  input.addEventListener("change", () => {
    if (input.files.length) answer(session, manifest, input.files[0]).catch(failed);
  });
  input.disabled = false;
  showState("Ready.");
}

start().catch((error) => showState(`The network could not be loaded: ${error.message ?? error}`, true));
