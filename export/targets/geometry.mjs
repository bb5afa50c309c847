// Boxes of cells in the pixels of a picture, as protoserve/images/geometry.py computes them.

/** Per axis, the map from the model's pixels to the picture's by the manifest's rule: x = scale · model_x + offset. */
export function geometry(rule, width, height) {
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
    // In the same order as in Python, so that both round in the same way.
    const start = (length - part) / 2, end = (length + part) / 2;
    const scale = (end - start) / size;
    return { length, target, scale, offset: start - scale * Math.floor((target - size) / 2) };
  };
  return [axis(width, across, columns, rule.width), axis(height, down, rows, rule.height)];
}

/**
 * A cell's left, top, right and bottom in the picture's pixels; right and bottom are exclusive. With tiles, the box holds
 * every pixel that the resize filter reads for the cell's tile.
 */
export function box(axes, graph, cell) {
  const reach = Math.floor((graph.smoothing ?? 1) / 2);
  const ends = axes.map(({ length, target, scale, offset }, axis) => {
    const cells = axis === 0 ? graph.columns : graph.rows;
    const index = axis === 0 ? cell % graph.columns : Math.floor(cell / graph.columns);
    if (graph.tile) {
      const first = (graph.tile_start ?? 0) + index * graph.tile_step;
      const start = Math.max(first, 0), end = Math.min(first + graph.tile, target);
      return filtered(length, scale, offset, start, end - start);
    }
    const step = (scale * target) / cells;
    const pixel = (edge) => Math.floor(offset + step * edge + 0.5);
    const first = Math.min(Math.max(pixel(Math.max(0, index - reach)), 0), length - 1);
    const last = Math.min(pixel(Math.min(cells, index + reach + 1)), length);
    return [first, Math.max(last, first + 1)];
  });
  return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]];
}

/** The region that holds most of a cell's gradient; null with tiles, whose box is exact, and where it was not measured. */
export function seenBox(axes, graph, cell) {
  if (graph.tile || !graph.reach) return null;
  const ends = axes.map(({ length, target, scale, offset }, axis) => {
    const cells = axis === 0 ? graph.columns : graph.rows;
    const index = axis === 0 ? cell % graph.columns : Math.floor(cell / graph.columns);
    const reach = graph.reach[1 - axis], centre = ((index + 0.5) * target) / cells;
    const start = offset + scale * (centre - reach), pixel = (edge) => Math.floor(edge + 0.5);
    const first = Math.min(Math.max(pixel(start), 0), length - 1);
    return [first, Math.max(Math.min(pixel(start + 2 * scale * reach), length), first + 1)];
  });
  return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]];
}

/** The start and the end of the pixels that the resize filter reads for `count` pixels of the model from `first` on. */
function filtered(length, scale, offset, first, count) {
  const support = Math.max(scale, 1);
  const exact = Number.isInteger(256 * scale) && Number.isInteger(256 * offset);
  const slack = exact ? 0 : 1e-6 * length;
  const start = Math.floor(offset + scale * (first + 0.5) - support + 0.5 - slack);
  const end = Math.ceil(offset + scale * (first + count - 0.5) + support - 0.5 + slack);
  const inside = Math.min(Math.max(start, 0), length - 1);
  return [inside, Math.max(Math.min(end, length), inside + 1)];
}
