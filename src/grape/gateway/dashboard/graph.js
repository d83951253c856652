// The live graph: drawn once for a topology, then only its numbers change.

import { attribute, button, h, s, say } from "./dom.js";
import { brief, plural, rate } from "./format.js";
import { layout } from "./layout.js";

const PAD = 28;
const SMALLEST = 0.2;
const LARGEST = 2.5;
const READABLE = 0.56;
const TALLEST = 6000;
const NAME = 26;

const brush = document.createElement("canvas").getContext("2d");

function wide(text, font) {
  brush.font = font;
  return brush.measureText(text).width;
}

const short = (name) => (name.length > NAME ? `${name.slice(0, NAME - 1)}…` : name);

export class Graph {
  /** select: called with what was chosen, {kind, name}, or null. */
  constructor(model, numbers, select) {
    this.model = model;
    this.numbers = numbers;
    this.select = select;
    this.chosen = null;
    this.view = { x: 0, y: 0, scale: 1 };
    this.parts = new Map();
    this.isDown = null;
    this.world = s("g", {});
    this.svg = s("svg", { class: "graph", role: "group", tabindex: "0", "aria-label": this.#summary() }, this.#marks(), this.world);
    this.box = h("div", { class: "graph-box" }, this.svg, this.#tools());
    this.#listen();
    this.sizes = new ResizeObserver(() => this.#resized());
    this.sizes.observe(this.box);
  }

  close() {
    this.sizes.disconnect();
  }

  #summary() {
    const { slots, nodes, topology } = this.model;
    const size = `${plural(nodes.size, "node")}, ${plural(slots.length, "slot")}, ${plural(topology.outputs.length, "output")}`;
    return `Graph of ${topology.name}: ${size}. Arrow keys move it, plus and minus zoom, 0 shows all; Tab goes from box to box.`;
  }

  #marks() {
    const tip = (id) =>
      s("marker", { id, class: id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
        s("path", { d: "M0,0.8 L7,4 L0,7.2 Z" }));
    return s("defs", {}, tip("tip"), tip("tip-back"));
  }

  #tools() {
    const tool = (label, text, act) => button(text, act, { "aria-label": label, title: label });
    return h(
      "div",
      { class: "tools", role: "toolbar", "aria-label": "View" },
      tool("Larger", "+", () => this.#zoom(1.25)),
      tool("Smaller", "−", () => this.#zoom(0.8)),
      tool("Show all", "⤢", () => this.fit()),
    );
  }

  // ---------------------------------------------------------------- drawing

  #resized() {
    const isDown = this.box.clientWidth < 640;
    if (isDown !== this.isDown) {
      this.isDown = isDown;
      this.#draw();
    }
    if (!this.isMoved) this.#begin();
  }

  #draw() {
    const { model } = this;
    const font = getComputedStyle(document.body).fontFamily;
    const vertices = [];
    for (const event of model.events.values()) {
      vertices.push({ id: `event:${event.name}`, width: Math.max(58, wide(short(event.name), `600 12px ${font}`) + 30), height: 38 });
    }
    for (const node of model.nodes.values()) {
      vertices.push({ id: `node:${node.name}`, width: Math.max(116, wide(short(node.name), `600 14px ${font}`) + 32), height: 56 });
    }
    const edges = [
      ...model.slots.map((slot) => ({ id: `slot:${slot.name}`, from: `event:${slot.event}`, to: `node:${slot.node}` })),
      ...model.emits.map((emit) => ({ id: emit.id, from: `node:${emit.node}`, to: `event:${emit.event}` })),
    ];
    this.drawing = layout(vertices, edges, this.isDown);
    this.parts.clear();
    const links = [
      ...model.emits.map((emit) => this.#emit(emit)),
      ...model.slots.map((slot) => this.#slot(slot)),
    ];
    const boxes = [
      ...[...model.events.values()].map((event) => this.#event(event)),
      ...[...model.nodes.values()].map((node) => this.#node(node)),
    ].sort((a, b) => a.place.x - b.place.x || a.place.y - b.place.y);
    this.world.replaceChildren(...links.map((link) => link.element), ...boxes.map((box) => box.element));
    this.update();
    this.mark(this.chosen);
  }

  #emit(emit) {
    const { path, isBack } = this.drawing.edges.get(emit.id);
    const line = s("path", { d: path, class: "line", "marker-end": `url(#${isBack ? "tip-back" : "tip"})` });
    const flow = s("path", { d: path, class: "flow" });
    const kind = `edge emit${emit.isDeclared ? "" : " seen"}${isBack ? " back" : ""}`;
    const element = s("g", { class: kind }, line, flow);
    element.append(s("title", {}, `${emit.node} emits ${emit.event}${emit.isDeclared ? "" : " (as its code says; it is not declared)"}`));
    const slots = this.model.slots.filter((slot) => slot.node === emit.node);
    const isBusy = () => slots.some((slot) => this.numbers.rate("processed", slot.name) > 0);
    // who of several emits it is not counted: one that does nothing does not
    const update = () => this.#flows(flow, isBusy() ? this.numbers.rate("emitted", emit.event) : 0);
    const part = { element, update };
    this.parts.set(emit.id, part);
    return part;
  }

  #slot(slot) {
    const id = `slot:${slot.name}`;
    const { path, isBack, end } = this.drawing.edges.get(id);
    const flow = s("path", { d: path, class: "flow" });
    const waits = this.#pill("waits");
    const fails = this.#pill("fails");
    const [x, y] = this.isDown ? [end[0], end[1] - 16] : [end[0] - 9, end[1]];
    const element = s(
      "g",
      { class: `edge slot${isBack ? " back" : ""}`, "data-slot": slot.name, on: { click: (e) => this.#choose(e, "slot", slot.name) } },
      s("path", { d: path, class: "hit" }),
      s("path", { d: path, class: "line", "marker-end": `url(#${isBack ? "tip-back" : "tip"})` }),
      flow,
      s("title", {}, `slot ${slot.name}: what waits, and what fails a second`),
      waits.element,
      fails.element,
    );
    const update = () => {
      const failures = this.numbers.rate("failures", slot.name) ?? 0;
      const queued = this.numbers.queued(slot.name);
      this.#flows(flow, this.numbers.rate("processed", slot.name));
      attribute(element, "data-fails", failures > 0.05);
      const at = this.isDown ? 1 : 0;
      let right = x;
      const text = queued ? `${this.numbers.waiting.is_all ? "" : "≥"}${brief(queued)}` : "";
      right -= waits.show(text, right, y - (at ? 6 : 11)) + 4;
      fails.show(failures > 0.05 ? `${rate(failures)}/s` : "", right, y - (at ? 6 : 11));
    };
    const part = { element, update };
    this.parts.set(id, part);
    return part;
  }

  /** A small text on a ground of its own, whose right end is where it is shown; returns how wide it is. */
  #pill(kind) {
    const ground = s("rect", { rx: 7, height: 14 });
    const text = s("text", { "text-anchor": "middle" });
    const element = s("g", { class: `pill ${kind}`, visibility: "hidden" }, ground, text);
    const show = (said, right, y) => {
      attribute(element, "visibility", said ? "visible" : "hidden");
      if (!said) return 0;
      const width = said.length * 6.2 + 10;
      say(text, said);
      for (const [name, value] of [["x", right - width], ["y", y - 7], ["width", width]]) attribute(ground, name, value);
      attribute(text, "x", right - width / 2);
      attribute(text, "y", y + 3.5);
      return width;
    };
    return { element, show };
  }

  #vertex(id, kind, name, label, children) {
    const place = this.drawing.vertices.get(id);
    const choose = (e) => this.#choose(e, kind, name);
    const keys = (e) => {
      if (e.key === "Enter" || e.key === " ") choose(e);
    };
    const element = s(
      "g",
      {
        class: `vertex ${kind}`,
        transform: `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})`,
        tabindex: "0",
        role: "button",
        "aria-label": label,
        [`data-${kind}`]: name,
        on: { click: choose, keydown: keys, focus: () => this.#reveal(place, element) },
      },
      ...children(place),
    );
    const part = { element, place };
    this.parts.set(id, part);
    return part;
  }

  #event(event) {
    const figure = s("text", { class: "figure", y: 12, "text-anchor": "middle" });
    const kind = event.isOutput ? "out" : event.isForeign ? "foreign" : event.from.length ? "" : "in";
    const part = this.#vertex(`event:${event.name}`, "event", event.name, `event ${event.name}`, ({ width, height }) => [
      s("rect", { x: -width / 2, y: -height / 2, width, height, rx: height / 2 }),
      s("text", { class: "name", y: -3, "text-anchor": "middle" }, short(event.name)),
      figure,
      s("title", {}, `${event.isOutput ? "output" : kind === "in" ? "event from outside" : "event"} ${event.name}`),
    ]);
    part.element.classList.add(...(kind ? [kind] : []));
    part.update = () => {
      const now = this.numbers.eventRate(event.name);
      say(figure, this.numbers.now === null ? "" : `${rate(now)}/s`);
      attribute(part.element, "aria-label", `event ${event.name}, ${rate(now)} a second`);
      attribute(part.element, "data-idle", !(now > 0));
    };
    return part;
  }

  #node(node) {
    const slots = this.model.slots.filter((slot) => slot.node === node.name);
    const figure = s("text", { class: "figure", y: 17 });
    const dead = this.#pill("dead");
    const isAlone = this.model.topology.pools.length < 2;
    const part = this.#vertex(`node:${node.name}`, "node", node.name, `node ${node.name}`, ({ width, height }) => {
      attribute(figure, "x", -width / 2 + 14);
      const pool = isAlone ? [] : [s("text", { class: "pool", x: width / 2 - 12, y: 17, "text-anchor": "end" }, short(node.pool))];
      return [
        s("rect", { x: -width / 2, y: -height / 2, width, height, rx: 10 }),
        s("text", { class: "name", x: -width / 2 + 14, y: -4 }, short(node.name)),
        figure,
        ...pool,
        dead.element,
        s("title", {}, `node ${node.name}, pool ${node.pool}`),
      ];
    });
    part.update = () => {
      const now = slots.reduce((sum, slot) => sum + (this.numbers.rate("processed", slot.name) ?? 0), 0);
      const letters = this.numbers.dead((kind) => kind.node === node.name);
      say(figure, this.numbers.now === null ? "" : `${rate(now)}/s`);
      dead.show(letters ? `${brief(letters)} dead` : "", part.place.width / 2 - 8, -part.place.height / 2);
      const about = letters ? `, ${plural(letters, "dead letter")}` : "";
      attribute(part.element, "aria-label", `node ${node.name}, ${rate(now)} a second${about}`);
      attribute(part.element, "data-idle", !(now > 0));
    };
    return part;
  }

  #flows(flow, perSecond) {
    const speed = !(perSecond > 0) ? null : perSecond < 10 ? "slow" : perSecond < 1000 ? "even" : "fast";
    attribute(flow, "data-speed", speed);
  }

  update() {
    for (const part of this.parts.values()) part.update();
  }

  // ---------------------------------------------------------------- choosing

  #choose(event, kind, name) {
    event.preventDefault();
    event.stopPropagation();
    if (this.wasDragged) return;
    const same = this.chosen?.kind === kind && this.chosen.name === name;
    this.select(same ? null : { kind, name });
  }

  mark(chosen) {
    this.chosen = chosen;
    for (const [id, part] of this.parts) {
      const isIt = chosen !== null && id === `${chosen.kind}:${chosen.name}`;
      attribute(part.element, "data-chosen", isIt);
      if (part.place) attribute(part.element, "aria-pressed", isIt ? "true" : "false");
    }
  }

  // ---------------------------------------------------------------- moving

  #size() {
    return [this.svg.clientWidth || 1, this.svg.clientHeight || 1];
  }

  #show() {
    const { x, y, scale } = this.view;
    this.world.setAttribute("transform", `translate(${x.toFixed(2)} ${y.toFixed(2)}) scale(${scale.toFixed(4)})`);
  }

  /** All of it, if that can be read; else its beginning. */
  #begin() {
    const { width, height } = this.drawing;
    const all = (this.box.clientWidth - 2 * PAD) / width;
    const scale = Math.min(1.1, Math.max(all, READABLE));
    // down, the page is scrolled to see the rest: a finger that moves across a graph means the page
    const most = this.isDown ? TALLEST : Math.max(360, innerHeight * 0.72);
    const wished = Math.min(Math.max(height * scale + 2 * PAD, 300), most);
    this.svg.style.height = `${Math.round(wished)}px`;
    const [w, hgt] = this.#size();
    const room = (space, size) => (size * scale + 2 * PAD <= space + 1 ? (space - size * scale) / 2 : PAD);
    this.view = { scale, x: room(w, width), y: room(hgt, height) };
    this.#show();
  }

  fit() {
    this.isMoved = true;
    const [w, hgt] = this.#size();
    const { width, height } = this.drawing;
    const scale = Math.max(SMALLEST, Math.min(1.1, (w - 2 * PAD) / width, (hgt - 2 * PAD) / height));
    this.view = { scale, x: (w - width * scale) / 2, y: (hgt - height * scale) / 2 };
    this.#show();
  }

  #zoom(by, at = this.#size().map((n) => n / 2)) {
    this.isMoved = true;
    const scale = Math.min(LARGEST, Math.max(SMALLEST, this.view.scale * by));
    const real = scale / this.view.scale;
    this.view = { scale, x: at[0] - (at[0] - this.view.x) * real, y: at[1] - (at[1] - this.view.y) * real };
    this.#show();
  }

  #move(x, y) {
    this.isMoved = true;
    this.view.x += x;
    this.view.y += y;
    this.#show();
  }

  /** What has the keyboard's focus can be seen. */
  #reveal(place, element) {
    if (!element.matches(":focus-visible")) return;
    const [w, hgt] = this.#size();
    const [x, y] = [place.x * this.view.scale + this.view.x, place.y * this.view.scale + this.view.y];
    const over = (at, size, space) => (at - size < 8 ? 8 - (at - size) : at + size > space - 8 ? space - 8 - (at + size) : 0);
    const [dx, dy] = [over(x, (place.width * this.view.scale) / 2, w), over(y, (place.height * this.view.scale) / 2, hgt)];
    if (dx || dy) this.#move(dx, dy);
  }

  #listen() {
    const { svg } = this;
    let from = null;
    svg.addEventListener("pointerdown", (e) => {
      if (e.button !== 0) return;
      from = { x: e.clientX, y: e.clientY, id: e.pointerId };
      this.wasDragged = false;
    });
    svg.addEventListener("pointermove", (e) => {
      if (from === null || e.pointerId !== from.id) return;
      if (!this.wasDragged && Math.hypot(e.clientX - from.x, e.clientY - from.y) < 4) return;
      if (!this.wasDragged) svg.setPointerCapture(e.pointerId);
      this.wasDragged = true;
      this.#move(e.clientX - from.x, e.clientY - from.y);
      from = { ...from, x: e.clientX, y: e.clientY };
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => (from = null));
    svg.addEventListener("click", () => {
      if (!this.wasDragged) this.select(null);
    });
    svg.addEventListener(
      "wheel",
      (e) => {
        if (!e.ctrlKey && !e.metaKey) return;
        e.preventDefault();
        const frame = svg.getBoundingClientRect();
        this.#zoom(Math.exp(-e.deltaY / 300), [e.clientX - frame.left, e.clientY - frame.top]);
      },
      { passive: false },
    );
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    svg.addEventListener("keydown", (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      if (steps[e.key]) this.#move(...steps[e.key]);
      else if (e.key === "+" || e.key === "=") this.#zoom(1.25);
      else if (e.key === "-") this.#zoom(0.8);
      else if (e.key === "0") this.fit();
      else if (e.key === "Escape") this.select(null);
      else return;
      e.preventDefault();
    });
  }
}
