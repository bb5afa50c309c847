// The page of the target `web`: decode a picture, run the graph, show every level with its evidence. The graph resizes.
import * as ort from "./ort.wasm.bundle.min.mjs";

const SHOWN = 5;
const state = document.getElementById("state");
const input = document.getElementById("file");

function say(text, error = false) {
  state.textContent = text;
  state.className = error ? "error" : "";
}

function element(name, text = "", parent = null) {
  const made = document.createElement(name);
  made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

/** The picture upright, on white where it is transparent, in its own colours: a canvas. */
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

/** uint8 [1, height, width, 3] of a canvas. */
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

/** Where the model's pixels lie in the picture: x = scale · model_x + offset, by the manifest's rule. */
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

/** left, top, right, bottom of a cell in the picture's pixels; right and bottom are exclusive. */
function box(axes, graph, cell) {
  const reach = Math.floor((graph.span ?? 1) / 2);
  const ends = axes.map(({ length, target, scale, offset }, axis) => {
    const cells = axis === 0 ? graph.columns : graph.rows;
    const place = axis === 0 ? cell % graph.columns : Math.floor(cell / graph.columns);
    const step = (scale * target) / cells;
    const pixel = (edge) => Math.floor(offset + step * edge + 0.5);
    const first = Math.min(Math.max(pixel(Math.max(0, place - reach)), 0), length - 1);
    const last = Math.min(pixel(Math.min(cells, place + reach + 1)), length);
    return [first, Math.max(last, first + 1)];
  });
  return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]];
}

/** The graph's outputs as the document that the service answers with, as far as a browser can know it. */
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
    // In a flat model all leaves compete, whoever their parents are; in a hierarchical one siblings do.
    const only = siblings.get(parents[node]) === 1;
    const headed = manifest.kind === "hierarchical" ? !only : !inner.has(names[node]);
    const evidence = [];
    for (let place = level * k; headed && place < level * k + Math.min(k, SHOWN); place++) {
      const prototype = Number(outputs.evidence_prototype.data[place]);
      if (prototype < 0) break;
      const record = prototypes[prototype];
      evidence.push({
        prototype,
        similarity: outputs.evidence_similarity.data[place],
        weight: outputs.evidence_weight.data[place],
        contribution: outputs.evidence_contribution.data[place],
        box: box(axes, graph, Number(outputs.evidence_cell.data[place])),
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
    element("small", `${(100 * level.probability).toFixed(1)} %${level.forced ? ", the only one here" : ""}`, heading);
    const list = element("ol", "", section);
    for (const one of level.evidence) {
      const item = element("li", "", list);
      item.tabIndex = 0;
      const image = element("img", "", item);
      image.src = one.source.href;
      image.alt = `prototype ${one.prototype}, from ${one.source.image}`;
      element("span", `${one.contribution < 0 ? "" : "+"}${one.contribution.toFixed(2)} = ${one.similarity.toFixed(2)} × ${one.weight.toFixed(2)}`, item);
      for (const event of ["mouseenter", "focus"]) item.addEventListener(event, () => point(one.box));
    }
  }
  const first = answer.levels.flatMap((level) => level.evidence)[0];
  if (first) point(first.box);
  document.getElementById("answer").hidden = false;
}

async function answer(session, manifest, file) {
  say("Looking …");
  document.getElementById("document").textContent = "";
  const canvas = await decode(file);
  const began = performance.now();
  const outputs = await session.run({ image: pixels(canvas) });
  const found = documentOf(outputs, manifest, canvas);
  show(found, canvas);
  document.getElementById("document").textContent = JSON.stringify(found);
  say(`${found.path.join(" › ")} (${Math.round(performance.now() - began)} ms)`);
}

async function start() {
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  // More threads need headers that a plain file server does not send.
  ort.env.wasm.numThreads = 1;
  const [loaded, session] = await Promise.all([
    fetch("model.json").then((response) => response.json()),
    ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] }),
  ]);
  const { manifest } = loaded;
  document.getElementById("name").textContent = document.title = manifest.name;
  const failed = (error) => say(`This did not work: ${error.message ?? error}`, true);
  input.addEventListener("change", () => {
    if (input.files.length) answer(session, manifest, input.files[0]).catch(failed);
  });
  input.disabled = false;
  say("Ready.");
}

start().catch((error) => say(`The network could not be loaded: ${error.message ?? error}`, true));
