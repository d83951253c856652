// One app: how it is, and a tab for everything that can be looked at.

import { Refused, get, place } from "./api.js";
import { ApiTab } from "./apitab.js";
import { attribute, button, empty, h, say } from "./dom.js";
import { DriversTab } from "./drivers.js";
import { brief, rate, seconds } from "./format.js";
import { GraphTab } from "./graphtab.js";
import { icon } from "./icons.js";
import { LettersTab } from "./letters.js";
import { Poll, Rates } from "./live.js";
import { CrashesTab, LogTab, PoolsTab, StateTab, VersionsTab } from "./looks.js";
import { Numbers, graphOf, shapeOf } from "./model.js";
import { ObjectsTab } from "./objects.js";
import { order } from "./orders.js";
import { TracesTab } from "./traces.js";

const TABS = [
  ["", "Graph", (view) => new GraphTab(view)],
  ["api", "API", (view) => new ApiTab(view)],
  ["traces", "Traces", (view) => new TracesTab(view)],
  ["drivers", "Drivers", (view) => new DriversTab(view)],
  ["pools", "Pools", (view) => new PoolsTab(view)],
  ["dead", "Dead letters", (view) => new LettersTab(view, "dead")],
  ["held", "Held", (view) => new LettersTab(view, "held")],
  ["objects", "Objects", (view) => new ObjectsTab(view)],
  ["state", "State", (view) => new StateTab(view)],
  ["crashes", "Crashes", (view) => new CrashesTab(view)],
  ["log", "Log", (view) => new LogTab(view)],
  ["versions", "Versions", (view) => new VersionsTab(view)],
];

export class AppView {
  constructor(name, page) {
    this.name = name;
    this.page = page;
    this.info = null;
    this.model = null;
    this.mayChange = true;
    this.mayEmit = true;
    this.numbers = new Numbers(new Rates());
    this.tab = null;
    this.#build();
    this.poll = new Poll((signal) => this.#ask(signal), 1000);
    this.kinds = new Poll((signal) => this.#askKinds(signal), 5000);
    this.waiting = new Poll((signal) => this.#askWaiting(signal), 2000);
  }

  close() {
    for (const poll of [this.poll, this.kinds, this.waiting]) poll.stop();
    this.tab?.close?.();
  }

  place(what, query) {
    return place(this.name, what, query);
  }

  link(tab, query = {}) {
    const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
    const search = new URLSearchParams(given).toString();
    return `#/${encodeURIComponent(this.name)}${tab && `/${tab}`}${search && `?${search}`}`;
  }

  // ---------------------------------------------------------------- what is shown

  #build() {
    this.state = h("span", { class: "state" });
    this.version = h("span", { class: "muted" });
    this.why = h("p", { class: "notice", hidden: true, role: "alert" });
    this.orders = h("div", { class: "actions orders" });
    this.rests = h("p", { class: "notice warn", hidden: true, role: "status" });
    this.figures = {};
    const figure = (label, title) => {
      const value = h("dd", {}, "–");
      this.figures[label] = value;
      return h("div", { title }, h("dt", {}, label), value);
    };
    this.tabs = h(
      "nav",
      { class: "tabs", "aria-label": "What of it" },
      ...TABS.map(([id, label]) => h("a", { href: this.link(id), "data-tab": id }, label, h("span", { class: "number" }))),
    );
    this.body = h("div", { class: "body" });
    this.element = h(
      "div",
      { class: "view" },
      h("div", { class: "title" }, h("h1", {}, this.name), this.state, this.version, this.orders),
      this.why,
      this.rests,
      h("dl", { class: "figures strip" },
        figure("events/s", "done with, over all pools"),
        figure("waiting", "events that wait, over all pools"),
        figure("held", "failed ones and those behind them, to be tried again"),
        figure("timers", "emitted with a delay, not due yet"),
        figure("p50", "from an event's batch being made to the event's end; the slowest pool"),
        figure("p99", "from an event's batch being made to the event's end; the slowest pool")),
      this.tabs,
      this.body,
    );
  }

  show(tab, query) {
    const found = TABS.find(([id]) => id === tab) ?? TABS[0];
    for (const link of this.tabs.children) attribute(link, "aria-current", link.dataset.tab === found[0] ? "page" : null);
    this.tabs.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" });
    if (this.shown !== found[0] || !this.tab) {
      this.tab?.close?.();
      this.shown = found[0];
      this.tab = found[2](this);
      this.body.replaceChildren(this.tab.element);
    }
    this.tab.asked?.(query);
    this.tab.update?.();
  }

  // ---------------------------------------------------------------- what is asked

  async #ask(signal) {
    let info;
    try {
      if (this.info === null) await this.#askRights(signal);
      info = await get(this.place(), signal);
    } catch (e) {
      if (e.name !== "AbortError") this.page.heard(false, e.status === 401 ? "no token" : e.message);
      if (e.status === 404) this.body.replaceChildren(empty("There is no such app", e.message));
      throw e;
    }
    this.page.heard(true);
    const isOther = this.info === null || shapeOf(this.info) !== shapeOf(info);
    this.info = info;
    if (info.numbers) this.numbers.take(info.numbers);
    if (isOther) await this.#askTopology(signal);
    const broken = (info.drivers ?? []).filter((driver) => driver.error).length;
    say(this.tabs.querySelector("[data-tab=drivers] .number"), broken ? String(broken) : "");
    if (info.numbers && info.numbers.dead !== this.dead) {
      this.dead = info.numbers.dead;
      this.kinds?.now();
    }
    this.#update();
  }

  async #askRights(signal) {
    const told = await get("/overview", signal);
    const mine = told.apps.find((app) => app.name === this.name);
    this.mayChange = mine?.may_change ?? false;
    this.mayEmit = mine?.may_emit ?? false;
    attribute(this.element, "data-reads", !this.mayChange);
  }

  async #askTopology(signal) {
    try {
      const topology = await get(this.place("topology"), signal);
      const told = JSON.stringify(topology);
      if (told === this.told) return;
      this.told = told;
      this.model = graphOf(topology);
    } catch (e) {
      if (!(e instanceof Refused)) throw e;
      this.model = null;
      this.told = null;
    }
    this.tab?.reshaped?.();
  }

  async #askKinds(signal) {
    const [dead, held] = [await get(this.place("dead/kinds"), signal), await get(this.place("held/kinds"), signal)];
    this.numbers.kinds = dead.kinds;
    this.letters = { dead, held };
    for (const [tab, found] of Object.entries(this.letters)) {
      const number = this.tabs.querySelector(`[data-tab=${tab}] .number`);
      say(number, found.count ? `${brief(found.count)}${found.is_all ? "" : "+"}` : "");
    }
    this.tab?.counted?.();
    this.tab?.update?.();
  }

  async #askWaiting(signal) {
    if (this.shown !== "" || !this.info?.numbers) return;
    if (this.info.numbers.backlog_events === 0) this.numbers.waiting = { slots: {}, is_all: true };
    else this.numbers.waiting = await get(this.place("backlog"), signal);
  }

  /** What a paused app shows, and who may pause it or let it go on. */
  #rest() {
    const { info } = this;
    attribute(this.element, "data-paused", info.paused);
    this.rests.hidden = !info.paused;
    say(this.rests, info.wanted === "running" ? "Paused: its workers are given nothing. What comes is taken in and waits, up to the limits of its pools." : "It is paused, and will be once it is started.");
    const verb = !this.mayChange ? "" : info.wanted !== "running" ? "start" : info.paused ? "resume" : "pause";
    if (verb === this.offered) return;
    this.offered = verb;
    const hadFocus = this.orders.contains(document.activeElement);
    const label = { pause: "Pause", resume: "Resume", start: "Start" }[verb];
    const one = verb ? button([icon(verb === "pause" ? "pause" : "play"), label], () => order(this, verb), { class: verb === "pause" ? null : "primary" }) : null;
    this.orders.replaceChildren(...(one ? [one] : []));
    if (hadFocus) one?.focus();
  }

  #update() {
    const { info } = this;
    say(this.state, info.state);
    attribute(this.state, "data-state", info.state);
    say(this.version, info.version && `version ${info.version}`);
    this.why.hidden = !info.why;
    say(this.why, info.why);
    this.#rest();
    const now = info.numbers;
    const pools = now ? Object.values(now.pools) : [];
    const slowest = (quantile) => {
      const found = pools.map((pool) => pool.latency[quantile]).filter((value) => value !== undefined);
      return found.length ? seconds(Math.max(...found)) : "–";
    };
    const figures = this.figures;
    say(figures["events/s"], now ? rate(this.numbers.rates.of("finished") ?? 0) : "–");
    say(figures.waiting, now ? brief(now.backlog_events) : "–");
    say(figures.held, now ? brief(pools.reduce((sum, pool) => sum + pool.held, 0)) : "–");
    say(figures.timers, now ? brief(now.timers) : "–");
    say(figures.p50, slowest("0.5"));
    say(figures.p99, slowest("0.99"));
    this.tab?.update?.();
  }
}
