// A layered drawing of a directed graph (after Sugiyama): cycles are opened, vertices get layers, layers an order with
// few crossings, and what belongs together is drawn near to each other. Pure: sizes in, places out.

const BETWEEN_LAYERS = 66;
const BETWEEN = 18;
const LANE = 14;
const ROUNDS = 24;

/**
 * vertices: [{id, width, height}], edges: [{id, from, to}]. Flows to the right, or down if `isDown`.
 * Returns {width, height, vertices: Map(id -> {x, y, width, height}), edges: Map(id -> {path, middle, isBack})};
 * x and y are of the middle.
 */
export function layout(vertices, edges, isDown = false) {
  const nodes = new Map();
  for (const v of vertices) {
    const [along, across] = isDown ? [v.height, v.width] : [v.width, v.height];
    nodes.set(v.id, { id: v.id, along, across, ins: [], outs: [], layer: 0, at: 0 });
  }
  const links = edges.map((edge) => ({ ...edge, isBack: false }));
  open(nodes, links);
  rank(nodes, links);
  const layers = fillLayers(nodes, links);
  order(layers);
  beside(layers, links);
  const height = spread(layers);
  const width = along(layers);
  return drawn(nodes, links, layers, width, height, isDown);
}

/** As few as possible lead back: those that lead farthest back, seen from the beginnings. */
function open(nodes, links) {
  const outs = new Map([...nodes.keys()].map((id) => [id, []]));
  const incoming = new Set();
  for (const link of links) {
    outs.get(link.from).push(link.to);
    if (link.from !== link.to) incoming.add(link.to);
  }
  const depth = new Map();
  const reach = (starts) => {
    const queue = starts.filter((id) => !depth.has(id));
    for (const id of queue) depth.set(id, 0);
    for (let id = queue.shift(); id !== undefined; id = queue.shift()) {
      for (const to of outs.get(id)) {
        if (!depth.has(to)) {
          depth.set(to, depth.get(id) + 1);
          queue.push(to);
        }
      }
    }
  };
  reach([...nodes.keys()].filter((id) => !incoming.has(id)));
  for (const id of nodes.keys()) reach([id]); // cycles that nothing leads into
  const forth = new Map([...nodes.keys()].map((id) => [id, []]));
  const drop = (link) => depth.get(link.from) - depth.get(link.to);
  for (const link of [...links].sort((a, b) => drop(a) - drop(b))) {
    link.isBack = drop(link) >= 0 && leads(forth, link.to, link.from);
    if (!link.isBack) forth.get(link.from).push(link.to);
  }
}

function leads(outs, from, to) {
  const seen = new Set([from]);
  const stack = [from];
  for (let id = stack.pop(); id !== undefined; id = stack.pop()) {
    if (id === to) return true;
    for (const next of outs.get(id)) {
      if (!seen.has(next)) {
        seen.add(next);
        stack.push(next);
      }
    }
  }
  return false;
}

/** Longest ways from the beginnings; then each as near to what it leads to as can be, if that is no detour. */
function rank(nodes, links) {
  const outs = new Map([...nodes.keys()].map((id) => [id, []]));
  const left = new Map([...nodes.keys()].map((id) => [id, 0]));
  const ins = new Map();
  for (const link of links) {
    const [a, b] = link.isBack ? [link.to, link.from] : [link.from, link.to];
    if (a === b) continue;
    outs.get(a).push(b);
    left.set(b, left.get(b) + 1);
    ins.set(b, left.get(b));
  }
  const ready = [...nodes.keys()].filter((id) => left.get(id) === 0);
  const sorted = [];
  for (let id = ready.shift(); id !== undefined; id = ready.shift()) {
    sorted.push(id);
    for (const to of outs.get(id)) {
      nodes.get(to).layer = Math.max(nodes.get(to).layer, nodes.get(id).layer + 1);
      left.set(to, left.get(to) - 1);
      if (left.get(to) === 0) ready.push(to);
    }
  }
  for (const id of sorted.reverse()) {
    const next = outs.get(id).map((to) => nodes.get(to).layer);
    if (next.length && next.length >= (ins.get(id) ?? 0)) nodes.get(id).layer = Math.min(...next) - 1;
  }
}

/** Links over several layers become chains of lanes. */
function fillLayers(nodes, links) {
  const layers = [];
  const put = (node) => (layers[node.layer] ??= []).push(node);
  for (const node of nodes.values()) put(node);
  for (const link of links) {
    const [a, b] = (link.isBack ? [link.to, link.from] : [link.from, link.to]).map((id) => nodes.get(id));
    link.chain = [a];
    for (let layer = a.layer + 1; layer < b.layer; layer++) {
      const lane = { id: null, along: 0, across: LANE, ins: [], outs: [], layer, at: 0, isBack: link.isBack };
      put(lane);
      link.chain.push(lane);
    }
    link.chain.push(b);
    for (let i = 1; a !== b && i < link.chain.length; i++) {
      link.chain[i - 1].outs.push(link.chain[i]);
      link.chain[i].ins.push(link.chain[i - 1]);
    }
  }
  for (let i = 0; i < layers.length; i++) layers[i] ??= [];
  return layers;
}

function order(layers) {
  number(layers);
  let best = layers.map((layer) => [...layer]);
  let fewest = crossings(layers);
  for (let round = 0; round < ROUNDS && fewest > 0; round++) {
    const down = round % 2 === 0;
    const sequence = down ? layers.keys() : [...layers.keys()].reverse();
    for (const i of sequence) {
      const wished = new Map();
      for (const node of layers[i]) {
        const near = down ? node.ins : node.outs;
        wished.set(node, near.length ? near.reduce((sum, each) => sum + each.rank, 0) / near.length : node.rank);
      }
      layers[i].sort((a, b) => wished.get(a) - wished.get(b) || a.rank - b.rank);
      layers[i].forEach((node, rank) => (node.rank = rank));
    }
    const now = crossings(layers);
    if (now < fewest) {
      fewest = now;
      best = layers.map((layer) => [...layer]);
    }
  }
  best.forEach((layer, i) => (layers[i] = layer));
  number(layers);
}

const number = (layers) => layers.forEach((layer) => layer.forEach((node, rank) => (node.rank = rank)));

function crossings(layers) {
  let count = 0;
  for (const layer of layers) {
    const ends = layer.flatMap((node) => node.outs.map((to) => to.rank).sort((a, b) => a - b));
    for (let i = 1; i < ends.length; i++) for (let j = 0; j < i; j++) if (ends[j] > ends[i]) count++;
  }
  return count;
}

/** What leads back goes round its two boxes in lanes of their own, on the side where it comes from. */
function beside(layers, links) {
  for (const link of links.filter((each) => each.isBack)) {
    const inner = link.chain.slice(1, -1);
    const lane = (node, next) => {
      const isBelow = !next || next.rank >= level(node, next.layer, layers);
      const found = { id: null, along: 0, across: LANE, ins: [], outs: [], layer: node.layer, isBack: true };
      if (next) found.outs.push(next);
      layers[node.layer].splice(layers[node.layer].indexOf(node) + (isBelow ? 1 : 0), 0, found);
      layers[node.layer].forEach((each, rank) => (each.rank = rank));
      return found;
    };
    const [a, b] = [link.chain[0], link.chain[link.chain.length - 1]];
    link.lanes = a === b ? [lane(a)] : [lane(a, inner[0]), ...inner, lane(b, inner[inner.length - 1])];
  }
}

/** Which rank in a layer beside it is level with a node: that of its neighbours there, else at the same share. */
function level(node, layer, layers) {
  const near = [...node.ins, ...node.outs].filter((each) => each.layer === layer && !each.isBack);
  if (!near.length) return ((node.rank + 0.5) * layers[layer].length) / layers[node.layer].length - 0.5;
  return near.reduce((sum, each) => sum + each.rank, 0) / near.length;
}

/** Where in its layer each stands: as near to its neighbours as the order and the room allow. */
function spread(layers) {
  for (const layer of layers) {
    let at = 0;
    for (const node of layer) {
      node.at = at + node.across / 2;
      at += node.across + BETWEEN;
    }
  }
  for (let round = 0; round < ROUNDS; round++) {
    const side = round % 2 === 0 ? "ins" : "outs";
    const sequence = round % 2 === 0 ? layers : [...layers].reverse();
    for (const layer of sequence) {
      place(layer, (node) => {
        const near = round < ROUNDS - 6 ? node[side] : [...node.ins, ...node.outs];
        return near.length ? near.reduce((sum, each) => sum + each.at, 0) / near.length : node.at;
      });
    }
  }
  return closed(layers.flat());
}

/** Bands in which nothing stands are no wider than they need to be; returns how high all is. */
function closed(all) {
  let end = 0;
  let shift = 0;
  for (const node of [...all].sort((a, b) => a.at - a.across / 2 - (b.at - b.across / 2))) {
    const top = node.at - node.across / 2;
    if (end === 0) shift = -top;
    else if (top + shift > end + 2 * BETWEEN) shift = end + 2 * BETWEEN - top;
    node.at += shift;
    end = Math.max(end, node.at + node.across / 2);
  }
  return end;
}

/** The nearest places to those wished for, in the given order and without touching (pooled adjacent violators). */
function place(layer, wish) {
  const blocks = [];
  let offset = 0;
  for (const node of layer) {
    const before = layer[node.rank - 1];
    if (before) offset += before.across / 2 + BETWEEN + node.across / 2;
    node.offset = offset;
    const weight = node.id === null ? 2 : 1;
    blocks.push({ sum: weight * (wish(node) - offset), weight, nodes: [node] });
    while (blocks.length > 1) {
      const [a, b] = blocks.slice(-2);
      if (a.sum / a.weight <= b.sum / b.weight) break;
      blocks.splice(-2, 2, { sum: a.sum + b.sum, weight: a.weight + b.weight, nodes: [...a.nodes, ...b.nodes] });
    }
  }
  for (const block of blocks) for (const node of block.nodes) node.at = block.sum / block.weight + node.offset;
}

function along(layers) {
  let at = 0;
  for (const layer of layers) {
    const most = Math.max(0, ...layer.map((node) => node.along));
    for (const node of layer) node.middle = at + most / 2;
    at += most + BETWEEN_LAYERS;
  }
  return Math.max(0, at - BETWEEN_LAYERS);
}

function drawn(nodes, links, layers, width, height, isDown) {
  const point = (along, across) => (isDown ? [across, along] : [along, across]);
  const found = { vertices: new Map(), edges: new Map() };
  for (const node of nodes.values()) {
    const [x, y] = point(node.middle, node.at);
    const [w, h] = isDown ? [node.across, node.along] : [node.along, node.across];
    found.vertices.set(node.id, { x, y, width: w, height: h });
  }
  let low = height;
  for (const link of links) {
    const [points, lowest] = link.isBack ? back(link) : forth(link);
    low = Math.max(low, lowest);
    const middle = points[Math.floor((points.length - 1) / 2)];
    const path = curve(points, point);
    found.edges.set(link.id, { path, isBack: link.isBack, end: point(...points[points.length - 1]), middle });
  }
  [found.width, found.height] = isDown ? [low, width] : [width, low];
  return found;
}

function forth(link) {
  const [a, b] = [link.chain[0], link.chain[link.chain.length - 1]];
  const inner = link.chain.slice(1, -1).map((lane) => [lane.middle, lane.at]);
  return [[[a.middle + a.along / 2, a.at], ...inner, [b.middle - b.along / 2, b.at]], 0];
}

/** It leaves where all do, goes round its box and back in its lanes, and comes in where all do. */
function back(link) {
  const [b, a] = [link.chain[0], link.chain[link.chain.length - 1]];
  const lanes = link.lanes.map((lane) => [lane.middle, lane.at]).reverse();
  const turn = (node, side, at) => [node.middle + side * (node.along / 2 + 20), (node.at + at) / 2, "turn"];
  const points = [
    [a.middle + a.along / 2, a.at],
    turn(a, 1, lanes[0][1]),
    ...lanes,
    turn(b, -1, lanes[lanes.length - 1][1]),
    [b.middle - b.along / 2, b.at],
  ];
  return [points, Math.max(...points.map((each) => each[1]))];
}

/** Through the points, along the flow; at a turn across it. */
function curve(points, point) {
  const text = (along, across) => point(along, across).map((n) => n.toFixed(1)).join(",");
  let path = `M${text(...points[0])}`;
  for (let i = 1; i < points.length; i++) {
    const [[x0, y0, turn0], [x1, y1, turn1]] = [points[i - 1], points[i]];
    const half = (x1 - x0) / 2;
    if (turn0 || turn1) {
      // a quarter of a circle, about
      const first = turn1 ? [x0 + (x1 - x0) * 0.6, y0] : [x0, y0 + (y1 - y0) * 0.6];
      const second = turn1 ? [x1, y1 - (y1 - y0) * 0.6] : [x1 - (x1 - x0) * 0.6, y1];
      path += `C${text(...first)} ${text(...second)} ${text(x1, y1)}`;
    } else {
      path += `C${text(x0 + half, y0)} ${text(x1 - half, y1)} ${text(x1, y1)}`;
    }
  }
  return path;
}
