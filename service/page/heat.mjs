// The colours of heat maps, on one fixed scale for all maps.

// Logits at which the heat map is brightest: such a piece of evidence multiplies the odds by 20.
export const BRIGHTEST = 3;
// From dark violet to pale yellow, over a grey picture. Where a cell is no more similar than usual, nothing is drawn.
const HEAT = [[45, 15, 110], [150, 30, 120], [240, 100, 40], [255, 240, 150]];

/** Red, green, blue and opacity, 0 to 255, of a share of `BRIGHTEST`. */
export function heatColour(strength) {
  const place = Math.min(Math.max(strength, 0), 1) * (HEAT.length - 1);
  const index = Math.min(Math.floor(place), HEAT.length - 2), part = place - index;
  const colour = HEAT[index].map((value, channel) => Math.round(value + part * (HEAT[index + 1][channel] - value)));
  return [...colour, Math.round(255 * Math.min(1, 0.15 * (place > 0) + 0.7 * Math.sqrt(place / (HEAT.length - 1))))];
}
