// Why not another class? The two paths compared where they part, as protoserve/inference/contrast.py compares them.

const SHOWN = 5;

/**
 * Compare the predicted path with the path to the node `asked`, in the form of the service's `contrast`.
 *
 * `outputs` are the graph's, by name, each with its `data`; `weights` those of weights.bin: each prototype's for all nodes
 * that compete with its own, in order. `place` maps a prototype and a cell to its box, the region seen, and its source.
 * Null for a node that the model does not have.
 */
export function contrastOf(outputs, manifest, weights, asked, place) {
  const { taxonomy, prior } = manifest;
  const names = taxonomy.nodes.map((node) => node.join("/")), node = names.indexOf(asked);
  if (node < 0) return null;
  const nothing = { node: asked, level: null, predicted: null, instead: null, logit_difference: null, prior_difference: null, rest: null, evidence: [], missing: [], path: [] };
  const path = Array.from(outputs.path.data, Number).filter((one) => one >= 0);
  const other = taxonomy.nodes[node].map((_, depth) => names.indexOf(taxonomy.nodes[node].slice(0, depth + 1).join("/")));
  const level = other.findIndex((one, depth) => one !== path[depth]);
  if (level < 0) return { ...nothing, relation: "predicted" };
  if (level >= path.length) return { ...nothing, relation: "below" };
  const logarithm = (one) => Number(outputs.log_probability.data[one]);
  const parents = taxonomy.nodes.map((one) => one.slice(0, -1).join("/")), inner = new Set(parents);
  const siblings = manifest.kind === "hierarchical";
  const leaves = names.flatMap((name, one) => (inner.has(name) ? [] : [one]));
  const below = leaves.filter((leaf) => `${names[leaf]}/`.startsWith(`${asked}/`));
  // Where all leaves compete at once, inner nodes have no score.
  const ours = siblings ? path[level] : path.at(-1);
  const theirs = siblings ? other[level] : below.reduce((best, leaf) => (logarithm(leaf) > logarithm(best) ? leaf : best));
  const group = siblings ? names.flatMap((_, one) => (parents[one] === parents[ours] ? [one] : [])) : leaves;
  const pieces = piecesOf(outputs, manifest, weights, { group, ours, theirs, names, parents, siblings, leaves });
  // Stable, as in Python: equal ones keep their order.
  pieces.sort((one, another) => Math.abs(another.difference) - Math.abs(one.difference));
  const absent = (piece) => piece.child === names[theirs] && !piece.found;
  const told = (wanted) => pieces.filter(wanted).slice(0, Math.min(manifest.graph.top_k, SHOWN));
  const placed = (piece) => ({ ...piece, ...place(piece.prototype, Number(outputs.cell.data[piece.prototype])) });
  const evidence = told((piece) => !absent(piece)).map(placed), missing = told(absent).map(placed);
  const logitDifference = outputs.logit.data[ours] - outputs.logit.data[theirs];
  const priorDifference = (prior[names[ours]] ?? 0) - (prior[names[theirs]] ?? 0);
  const shown = [...evidence, ...missing].reduce((sum, piece) => sum + piece.difference, 0);
  return {
    ...nothing,
    relation: "beside",
    level: level + 1,
    predicted: names[ours],
    instead: names[theirs],
    logit_difference: logitDifference,
    prior_difference: priorDifference,
    rest: logitDifference - priorDifference - shown,
    evidence,
    missing,
    path: other.slice(level).map((one, depth) => {
      const above = level + depth ? logarithm(other[level + depth - 1]) : 0;
      const only = parents.filter((parent) => parent === parents[one]).length === 1 && (siblings || inner.has(names[one]));
      const conditional = above === -Infinity ? 0 : Math.exp(Math.min(logarithm(one) - above, 0));
      return { level: level + depth + 1, node: names[one], label: taxonomy.nodes[one].at(-1), probability: Math.exp(Math.min(logarithm(one), 0)), conditional: only ? 1 : conditional };
    }),
  };
}

/** What each prototype of the group adds to the two nodes; a weight counts less its mean over the group. */
function piecesOf(outputs, { prototypes }, weights, { group, ours, theirs, names, parents, siblings, leaves }) {
  const sizes = new Map();
  for (const parent of parents) sizes.set(parent, (sizes.get(parent) ?? 0) + 1);
  const members = new Set(group.map((one) => names[one]));
  const place = (node) => group.indexOf(node);
  const pieces = [];
  let start = 0;
  prototypes.forEach(({ child, usual }, prototype) => {
    const size = siblings ? sizes.get(child.split("/").slice(0, -1).join("/")) : leaves.length;
    if (members.has(child)) {
      const own = Array.from(weights.slice(start, start + size));
      const mean = own.reduce((sum, weight) => sum + weight, 0) / size;
      const similarity = outputs.similarity.data[prototype], unusual = similarity - (usual ?? 0);
      const predicted = (own[place(ours)] - mean) * unusual;
      const difference = (own[place(ours)] - own[place(theirs)]) * unusual;
      pieces.push({ prototype, child, similarity, usual: usual ?? 0, found: unusual > 0, predicted, instead: predicted - difference, difference });
    }
    start += size;
  });
  return pieces;
}
