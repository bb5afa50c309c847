// Where things lie: maps on the picture, frames around boxes, numbers beside frames, crops around parts.

/**
 * Where a map of similarities lies on the picture, for each axis, in the sender's pixels: from `start` on, `length` long,
 * `before` and `after` times the cells at the edges repeated; `seen` is where the model's input starts and how long it
 * is. As in protoserve/cli/figures.py. `model` is the model or the member of an ensemble that drew the map of `mapRows`
 * and `mapColumns` cells, `rule` the input rule.
 */
export function mapRegion(model, rule, { width, height }, mapRows, mapColumns) {
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
  const axis = (length, part, size, target, cells) => {
    const scale = part / size, offset = (length - part) / 2 - scale * Math.floor((target - size) / 2);
    // Cells lie around the centres of their tiles; where they leave a margin, the cells beside it are repeated.
    const step = model.tile ? (model.tile_step ?? model.tile) : target / cells;
    const margin = model.tile ? (model.tile_start ?? 0) + (model.tile - step) / 2 : 0;
    const before = Math.max(0, Math.ceil(margin / step));
    const after = Math.max(0, Math.ceil((target - margin) / step - cells - 1e-9));
    const start = offset + scale * (margin - before * step);
    return { start, length: scale * step * (before + cells + after), before, after, seen: [offset, scale * target] };
  };
  return {
    x: axis(width, across, columns, rule.width, mapColumns),
    y: axis(height, down, rows, rule.height, mapRows),
  };
}

/** The square around a box that a crop shows: twice the box, no less than a twelfth of the picture, inside the picture. */
export function cropSquare([left, top, right, bottom], { width, height }) {
  const shorter = Math.min(width, height);
  const side = Math.min(Math.max(2 * Math.max(right - left, bottom - top), shorter / 12, 4), shorter);
  const start = (low, high, extent) => Math.max(0, Math.min(extent - side, (low + high - side) / 2));
  return { x: start(left, right, width), y: start(top, bottom, height), side };
}

/** A frame whose stroke of `stroke` display pixels lies outside the box, so that all of a small box can be seen. */
export function frameAround([left, top, right, bottom], scale, stroke) {
  return {
    x: left * scale - stroke / 2,
    y: top * scale - stroke / 2,
    width: (right - left) * scale + stroke,
    height: (bottom - top) * scale + stroke,
  };
}

/**
 * The centres of the numbers of frames, each at a corner of its frame where it covers no other number, if there is one.
 * Frames at the same place get their numbers side by side.
 */
export function numberPlaces(frames, radius, { width, height }) {
  const placed = [];
  for (const { x, y, width: across, height: down } of frames) {
    const corners = [[x, y], [x + across, y], [x, y + down], [x + across, y + down]];
    const beside = [1, 2, 3, 4, 5].flatMap((step) => [[x + 2.2 * radius * step, y], [x, y + 2.2 * radius * step]]);
    const inside = ([cx, cy]) => [Math.min(Math.max(cx, 0), width), Math.min(Math.max(cy, 0), height)];
    const candidates = [...corners, ...beside].map(inside);
    const free = ([cx, cy]) => placed.every(([ox, oy]) => Math.hypot(cx - ox, cy - oy) >= 2 * radius);
    placed.push(candidates.find(free) ?? candidates[0]);
  }
  return placed;
}
