// What makes events of an app by itself: when it did last, when it will, and how far it is.

import { get } from "./api.js";
import { button, copied, empty, h, say } from "./dom.js";
import { ago, ahead, bytes, count, moment, seconds } from "./format.js";
import { icon } from "./icons.js";
import { Poll } from "./live.js";

const KINDS = { cron: "moments of a calendar", timer: "every so often", watch: "files that come", webhook: "called by others" };
const MISSED = { none: "left out", last: "the last one is made up for", all: "all are made up for" };

const every = (n) => seconds(n).replace(".0 ", " ");

export class DriversTab {
  constructor(view) {
    this.view = view;
    this.times = [];
    this.element = h("div", {});
    this.poll = new Poll((signal) => this.#ask(signal), 2000);
  }

  close() {
    this.poll.stop();
  }

  /** Once a second, with everything else: a countdown goes on between two answers. */
  update() {
    for (const [element, text] of this.times) say(element, text());
  }

  async #ask(signal) {
    let told;
    try {
      told = await get(this.view.place("drivers"), signal);
    } catch (e) {
      if (e.name !== "AbortError") this.element.replaceChildren(empty("They cannot be shown", e.message));
      this.told = null;
      throw e;
    }
    const text = JSON.stringify(told.drivers);
    if (text === this.told) return;
    this.told = text;
    this.times = [];
    const focused = document.activeElement?.id;
    this.element.replaceChildren(
      told.drivers.length
        ? h("ul", { class: "cards plain drivers", "aria-label": "Drivers" }, ...told.drivers.map((driver) => this.#card(driver)))
        : empty("No drivers", "Nothing makes events of this app by itself. A [driver.NAME] in its grape.toml would: at the moments of a calendar, every so often, when files come, when others call."),
    );
    if (focused) document.getElementById(focused)?.focus();
  }

  #time(text) {
    const element = h("span", {}, text());
    this.times.push([element, text]);
    return element;
  }

  #card(driver) {
    const next = driver.next ?? driver.coming?.[0]?.at;
    const facts = [...this.#facts(driver)].filter(([, value]) => value !== null && value !== undefined && value !== "");
    return h("li", { class: "card driver", "data-kind": driver.kind, "data-bad": Boolean(driver.error) },
      h("div", { class: "row" },
        h("h2", {}, h("span", { class: "driver-icon" }, icon(driver.kind in KINDS ? driver.kind : "timer")), driver.name),
        h("span", { class: "state" }, driver.kind)),
      h("p", { class: "driver-what" }, this.#schedule(driver), h("span", { class: "arrow" }, " → "), h("a", { href: this.view.link("api", { event: driver.event }) }, driver.event)),
      h("dl", { class: "figures" },
        driver.kind === "cron" || driver.kind === "timer"
          ? h("div", {}, h("dt", {}, "next"), h("dd", {}, next ? this.#time(() => ahead(next)) : "–"))
          : null,
        h("div", {}, h("dt", {}, driver.kind === "webhook" ? "last call" : "last"), h("dd", {}, driver.last ? this.#time(() => ago(driver.last)) : "–")),
        driver.events === null || driver.events === undefined ? null : h("div", {}, h("dt", {}, "events so far"), h("dd", {}, count(driver.events)))),
      driver.error ? h("p", { class: "why" }, driver.error) : null,
      h("dl", { class: "about" }, ...facts.flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])));
  }

  #schedule(driver) {
    if (driver.kind === "cron") return h("code", {}, driver.schedule ?? "");
    if (driver.kind === "timer") return h("span", {}, "every ", h("code", {}, every(driver.every)));
    if (driver.kind === "watch") return h("code", {}, `${driver.path}/${driver.pattern}`);
    if (driver.kind === "objects") return h("code", {}, driver.path ?? "");
    return h("code", {}, driver.path ?? driver.name);
  }

  *#facts(driver) {
    yield ["key", driver.key];
    if (driver.kind === "cron") yield ["zone", driver.zone];
    if (driver.kind === "cron" || driver.kind === "timer") {
      const coming = driver.coming ?? [];
      yield ["then", coming.length ? h("ul", { class: "plain coming" }, ...coming.map((one) => h("li", {}, one.clock ?? moment(one.at)))) : null];
      yield ["done up to", driver.done_up_to ? moment(driver.done_up_to) : "nothing yet"];
      yield ["missed ones", `${MISSED[driver.catch_up] ?? driver.catch_up}, after ${every(driver.grace)}`];
      yield ["data", driver.data];
    } else if (driver.kind === "watch") {
      yield ["known files", driver.files === undefined ? null : count(driver.files)];
      yield ["looks", `every ${every(driver.interval)}; a file has to be still for ${every(driver.settle)}`];
    } else if (driver.kind === "webhook") {
      const url = `${location.origin}${driver.path}`;
      yield ["address", h("span", {}, h("code", {}, url), " ", button("Copy", () => copied(url), { class: "link", "aria-label": `Copy the address of ${driver.name}` }))];
      yield ["signed", driver.scheme ? `as ${driver.scheme} does it` : "no: a call takes a token"];
      yield ["told apart by", driver.id];
      yield ["headers", driver.headers?.length ? driver.headers.join(", ") : null];
      yield ["up to", bytes(driver.max_body)];
    }
  }
}
