// Take the answer along: as JSON, as a command, as Python, as a link, as a picture.
import { at } from "./service.mjs";
import { query } from "./answer.mjs";
import { frameAround } from "./geometry.mjs";
import { absent, extent, labelOf, number, percent, piecesOf, pythonArgument, readable, signed, waterfall } from "./words.mjs";
import { $, download, make, state } from "./state.mjs";

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const FORMS = {
  json: () => JSON.stringify(state.current.prediction, null, 2),
  curl: () => [
    "curl --data-binary", quoted(`@${state.current.name}`), "-H 'Content-Type: application/octet-stream'",
    ...(state.key ? [`-H "Authorization: Bearer $PROTOSERVE_KEY"`] : []), quoted(at(`v1/predict?${query()}`)),
  ].join(" "),
  python: () => {
    const options = [...query()].map(([name, value]) => `, ${pythonArgument(name, value)}`).join("");
    return [
      ...(state.key ? ["import os", ""] : []),
      "from protoserve.client import Client", "",
      `with Client(${JSON.stringify(at(""))}${state.key ? `, key=os.environ["PROTOSERVE_KEY"]` : ""}) as client:`,
      `    prediction = client.predict(${JSON.stringify(state.current.name)}${options})`,
      "    print(prediction.path)",
    ].join("\n");
  },
  link: () => at(`#${query()}`),
};

export function listenToShares() {
  for (const button of document.querySelectorAll("[data-share]")) {
    button.onclick = async () => {
      $("share").open = false;
      if (button.dataset.share === "png") return savePicture();
      const text = FORMS[button.dataset.share]();
      try {
        await navigator.clipboard.writeText(text);
        $("live").textContent = "Copied.";
        flash(button.textContent.replace("Copy", "Copied"));
      } catch {
        // Browsers let only safe origins write to the clipboard.
        $("text").querySelector("textarea").value = text;
        $("text").showModal();
        $("text").querySelector("textarea").select();
      }
    };
  }
}

function flash(text) {
  $("note").textContent = `${text} ✓`;
  $("note").hidden = false;
}

const WIDTH = 1200, MARGIN = 32, ROW = 108;

/** Draw the headline, the picture and the evidence of the active level, as they are on the page, and save that. */
async function savePicture() {
  const { picture, prediction, name } = state.current;
  const level = state.shown ?? { ...prediction.levels[state.level], logit: null };
  const steps = level.logit === null ? [] : waterfall(level, state.off);
  const { title, reason } = extent(prediction);
  const half = WIDTH / 2 - MARGIN * 1.5;
  const scale = Math.min(half / prediction.image.width, 900 / prediction.image.height);
  const tall = prediction.image.height * scale;
  const rowHeights = steps.map((step) => (step.item ? ROW : 34));
  const height = 150 + Math.max(tall, rowHeights.reduce((sum, value) => sum + value, 0) + 40) + 60;
  const canvas = make("canvas", { width: 2 * WIDTH, height: Math.round(2 * height) });
  const pen = canvas.getContext("2d");
  pen.scale(2, 2);
  const style = getComputedStyle(document.documentElement);
  const ink = (property) => style.getPropertyValue(property);
  const write = (text, x, y, size, colour = "--ink", weight = 400) => {
    pen.font = `${weight} ${size}px system-ui, sans-serif`;
    pen.fillStyle = ink(colour);
    pen.fillText(text, x, y);
  };
  pen.fillStyle = ink("--paper");
  pen.fillRect(0, 0, WIDTH, height);
  write(title, MARGIN, 62, 40, "--ink", 700);
  write(reason, MARGIN, 94, 18, "--soft");
  write(level.contrast ? `Why not ${labelOf(level.contrast.instead)}?` : prediction.levels.map(({ label, probability }) => `${readable(label)} ${percent(probability)}`).join("  ›  "), MARGIN, 124, 16);
  pen.drawImage(picture.source, MARGIN, 150, prediction.image.width * scale, tall);
  const marks = piecesOf(level).filter(({ kind, number: own }) => kind === "evidence" && !state.off.has(own));
  for (const { item, number: own } of marks.reverse()) {
    const frame = frameAround(item.box, scale, 5);
    for (const [width, colour] of [[5, "#fff"], [3, ink("--mark-for")]]) {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.strokeRect(MARGIN + frame.x, 150 + frame.y, frame.width, frame.height);
    }
    disc(pen, MARGIN + frame.x, 150 + frame.y, own, ink("--mark-for"));
  }
  const ends = [0, ...steps.flatMap(({ from, to }) => [from, to])], low = Math.min(...ends), span = Math.max(...ends) - low || 1;
  const part = (value) => (value - low) / span;
  const rows = [...$("panel").querySelectorAll(".step")];
  let y = 150;
  steps.forEach((step, index) => {
    const x = WIDTH / 2 + MARGIN / 2, middle = y + rowHeights[index] / 2;
    const images = [...rows[index].querySelectorAll("canvas, img")];
    images.forEach((image, place) => {
      if (image.tagName === "CANVAS" || image.naturalWidth) pen.drawImage(image, x + 30 + 150 * place, y + 6, 96, 96);
    });
    if (step.item) {
      disc(pen, x + 10, middle, step.number, ink(step.kind === "evidence" ? "--mark-for" : "--mark-against"));
      write(step.off ? "off" : absent(step.item) ? "≉" : "≈", x + 142, middle + 6, 18, "--soft");
    } else write(rows[index].querySelector(".name").textContent, x, middle + 6, 16, "--soft");
    write(step.kind === "score" ? number(step.value) : signed(step.value), x + 290, middle + 6, 20, step.kind === "score" ? "--ink" : step.value < 0 ? "--against" : "--for", 600);
    pen.fillStyle = ink(step.kind === "score" ? "--total" : step.to < step.from ? "--against" : "--for");
    pen.globalAlpha = step.item || step.kind === "score" ? 1 : 0.5;
    pen.fillRect(x + 375 + 170 * part(Math.min(step.from, step.to)), middle - 6, Math.max(2, 170 * (part(Math.max(step.from, step.to)) - part(Math.min(step.from, step.to)))), 12);
    pen.globalAlpha = 1;
    y += rowHeights[index];
  });
  write(`${prediction.model.name} ${prediction.model.version.slice(0, 19)}   ${name}`, MARGIN, height - 24, 14, "--soft");
  canvas.toBlob((blob) => download(`${name.replace(/\.[^.]*$/, "")}-explained.png`, blob));
}

function disc(pen, x, y, own, colour) {
  pen.beginPath();
  pen.arc(x, y, 11, 0, 2 * Math.PI);
  pen.fillStyle = colour;
  pen.fill();
  pen.fillStyle = "#fff";
  pen.font = "700 13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText(own, x, y + 4.5);
  pen.textAlign = "start";
}
