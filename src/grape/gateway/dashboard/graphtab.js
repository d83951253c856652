// The graph, and beside it what is known of what was chosen in it.

import { button, empty, h, say } from "./dom.js";
import { brief, count, plural, rate, seconds } from "./format.js";
import { Graph } from "./graph.js";
import { icon } from "./icons.js";

export class GraphTab {
  constructor(view) {
    this.view = view;
    this.panel = h("aside", { class: "panel", "aria-label": "What was chosen", hidden: true });
    this.element = h("div", { class: "graph-tab" });
    this.reshaped();
  }

  close() {
    this.graph?.close();
  }

  reshaped() {
    this.graph?.close();
    this.graph = null;
    this.chosen = null;
    this.panel.hidden = true;
    const { model, numbers, info } = this.view;
    if (model === null) {
      this.element.replaceChildren(info ? empty("Nothing to draw yet", "The app has not run, so its topology is not known.") : h("p", { class: "muted" }, "…"));
      return;
    }
    this.graph = new Graph(model, numbers, (chosen) => this.#choose(chosen));
    const legend = h(
      "p",
      { class: "legend" },
      h("span", { class: "key event" }, "event"),
      h("span", { class: "key node" }, "node"),
      h("span", { class: "key out" }, "output"),
      h("span", { class: "key seen" }, "emits, as its code says"),
      h("span", { class: "key back" }, "leads back"),
      h("span", { class: "hint" }, "Drag to move, Ctrl and wheel to zoom."),
    );
    this.graph.box.append(h("p", { class: "rests", "aria-hidden": "true" }, icon("pause"), "paused"));
    this.element.replaceChildren(h("div", { class: "stage" }, this.graph.box, this.panel), legend);
  }

  update() {
    this.graph?.update();
    for (const [element, value] of this.figures ?? []) say(element, value());
  }

  counted() {
    this.#letters();
  }

  // ---------------------------------------------------------------- the panel

  #choose(chosen) {
    this.chosen = chosen;
    this.graph.mark(chosen);
    this.panel.hidden = chosen === null;
    this.figures = [];
    if (chosen === null) return;
    const parts = { node: () => this.#node(chosen.name), event: () => this.#event(chosen.name), slot: () => this.#slot(chosen.name) };
    this.dead = h("div", { class: "panel-dead" });
    const close = button("×", () => this.#choose(null), { class: "quiet close", "aria-label": "Close" });
    this.panel.replaceChildren(close, ...parts[chosen.kind](), this.dead);
    this.#letters();
    this.update();
  }

  #figure(label, value) {
    const element = h("dd", {});
    this.figures.push([element, value]);
    return [h("dt", {}, label), element];
  }

  #node(name) {
    const { model, numbers } = this.view;
    const node = model.nodes.get(name);
    const slots = model.slots.filter((slot) => slot.node === name);
    const emits = model.emits.filter((emit) => emit.node === name);
    const go = (kind, what) => button(what, () => this.#choose({ kind, name: kind === "slot" ? `${what}>${name}` : what }), { class: "link" });
    return [
      h("p", { class: "over" }, "node"),
      h("h2", {}, name),
      h("dl", { class: "about" }, h("dt", {}, "pool"), h("dd", {}, node.pool), h("dt", {}, "state"), h("dd", {}, node.states.join(", ") || "none")),
      h("h3", {}, slots.length > 1 ? "Slots" : "Slot"),
      ...slots.map((slot) =>
        h("div", { class: "slot-row" }, go("slot", slot.event),
          h("dl", { class: "small" },
            ...this.#figure("events/s", () => rate(numbers.rate("processed", slot.name))),
            ...this.#figure("waiting", () => brief(numbers.queued(slot.name))),
            ...this.#figure("failed", () => brief(numbers.total("failures", slot.name)))))),
      emits.length ? h("h3", {}, "Emits") : null,
      emits.length ? h("p", { class: "chips" }, ...emits.map((emit) => go("event", emit.event))) : null,
      node.states.length ? h("p", {}, h("a", { href: this.view.link("state", { node: name }) }, "Look up its state")) : null,
    ].filter(Boolean);
  }

  #event(name) {
    const { model, numbers } = this.view;
    const event = model.events.get(name);
    const kind = event.isOutput ? "output" : event.isForeign ? "event of another app" : "event";
    const nodes = model.slots.filter((slot) => slot.event === name);
    const go = (what) => button(what, () => this.#choose({ kind: "node", name: what }), { class: "link" });
    return [
      h("p", { class: "over" }, kind),
      h("h2", {}, name),
      event.isForeign ? null : h("p", { class: "links" }, h("a", { href: this.view.link("api", { [event.isOutput ? "output" : "event"]: name }) }, event.isOutput ? "Look on" : "Send one")),
      h("dl", { class: "about" },
        ...this.#figure("events/s", () => rate(numbers.eventRate(name))),
        ...this.#figure("from outside", () => count(numbers.total("fed", name))),
        ...this.#figure("emitted", () => count(numbers.total("emitted", name))),
        ...(event.isOutput ? this.#figure("taken", () => count(numbers.total("taken", name))) : [])),
      event.from.length ? h("h3", {}, "From") : null,
      event.from.length ? h("p", { class: "chips" }, ...event.from.map(go)) : null,
      nodes.length ? h("h3", {}, "To") : null,
      nodes.length ? h("p", { class: "chips" }, ...nodes.map((slot) => go(slot.node))) : null,
    ].filter(Boolean);
  }

  #slot(name) {
    const { model, numbers } = this.view;
    const slot = model.slots.find((each) => each.name === name);
    const options = [
      ["retries", String(slot.retries)],
      ["timeout", slot.timeout ? seconds(slot.timeout) : "none"],
      ["when it fails", slot.on_fail === "stop" ? "stops for an operator" : "becomes a dead letter"],
      ["order", slot.ordered ? "kept by key" : "not kept"],
      ...(slot.batch > 1 ? [["batch", plural(slot.batch, "event")]] : []),
      ...(slot.eager ? [["eager", "yes"]] : []),
      ...(slot.where ? [["code", slot.where]] : []),
    ];
    return [
      h("p", { class: "over" }, "slot"),
      h("h2", {}, slot.event, h("span", { class: "arrow" }, " → "), slot.node),
      h("dl", { class: "about" },
        ...this.#figure("events/s", () => rate(numbers.rate("processed", name))),
        ...this.#figure("processed", () => count(numbers.total("processed", name))),
        ...this.#figure("waiting", () => `${numbers.waiting.is_all ? "" : "at least "}${count(numbers.queued(name))}`),
        ...this.#figure("failed attempts", () => count(numbers.total("failures", name))),
        ...options.flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])),
    ];
  }

  #letters() {
    if (!this.chosen) return;
    const { kind, name } = this.chosen;
    const fits = {
      node: (letter) => letter.node === name,
      event: (letter) => letter.event === name,
      slot: (letter) => `${letter.event}>${letter.node}` === name,
    }[kind];
    const found = this.view.numbers.kinds.filter(fits);
    const told = JSON.stringify(found);
    if (told === this.dead.told) return;
    this.dead.told = told;
    const lines = found.slice(0, 5).map((letter) =>
      h("li", {},
        h("a", { href: this.view.link("dead", { node: letter.node, event: letter.event, kind: letter.kind }) }, `${count(letter.count)} ${letter.kind}`),
        h("span", { class: "said" }, letter.text)));
    this.dead.replaceChildren(...(found.length ? [h("h3", {}, "Dead letters"), h("ul", { class: "plain" }, ...lines)] : []));
  }
}
