// All apps of the server.

import { get } from "./api.js";
import { attribute, empty, h, s, say } from "./dom.js";
import { ago, brief, plural, rate } from "./format.js";
import { History, Poll, Rates } from "./live.js";

export class ListView {
  constructor(page) {
    this.page = page;
    this.cards = new Map();
    this.about = h("p", { class: "lead" });
    this.grid = h("ul", { class: "apps", "aria-label": "Apps" });
    this.element = h("div", { class: "view" }, h("div", { class: "title" }, h("h1", {}, "Apps"), this.about), this.grid);
    this.poll = new Poll((signal) => this.#ask(signal), 1000);
  }

  close() {
    this.poll.stop();
  }

  async #ask(signal) {
    let told;
    try {
      told = await get("/overview", signal);
    } catch (e) {
      if (e.name !== "AbortError") this.page.heard(false, e.status === 401 ? "no token" : e.message);
      throw e;
    }
    this.page.heard(true);
    const names = new Set(told.apps.map((app) => app.name));
    for (const [name, card] of this.cards) {
      if (!names.has(name)) {
        card.element.remove();
        this.cards.delete(name);
      }
    }
    for (const app of told.apps) {
      if (!this.cards.has(app.name)) {
        this.cards.set(app.name, new Card(app.name));
        this.grid.append(this.cards.get(app.name).element);
      }
      this.cards.get(app.name).update(app);
    }
    const running = told.apps.filter((app) => app.state === "running").length;
    say(this.about, told.apps.length ? `${plural(told.apps.length, "app")}, ${running} running · Grape ${told.grape}` : "");
    if (!told.apps.length && !this.nothing) {
      this.nothing = empty("No apps yet", "grape app deploy DIR uploads one and runs it.");
      this.element.append(this.nothing);
    } else if (told.apps.length && this.nothing) {
      this.nothing.remove();
      this.nothing = null;
    }
  }
}

class Card {
  constructor(name) {
    this.rates = new Rates();
    this.history = new History();
    this.state = h("span", { class: "state" });
    this.version = h("span", { class: "muted" });
    this.line = s("path", { class: "spark" });
    this.area = s("path", { class: "spark-area" });
    this.why = h("p", { class: "why" });
    this.figures = {};
    const figure = (label) => {
      const value = h("dd", {}, "–");
      this.figures[label] = value;
      return h("div", {}, h("dt", {}, label), value);
    };
    this.element = h(
      "li",
      {},
      h("a", { class: "card app", href: `#/${encodeURIComponent(name)}` },
        h("div", { class: "row" }, h("h2", {}, name), this.state),
        this.version,
        s("svg", { class: "sparkline", viewBox: "0 0 240 44", preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line),
        h("dl", { class: "figures" }, figure("events/s"), figure("waiting"), figure("dead")),
        this.why),
    );
  }

  update(app) {
    attribute(this.element.firstChild, "data-paused", app.paused);
    say(this.state, app.state);
    attribute(this.state, "data-state", app.state);
    say(this.version, `${app.version} · ${app.state} since ${ago(app.since).replace(" ago", "")}`);
    say(this.why, app.why ? app.why.split("\n")[0] : "");
    this.why.hidden = !app.why;
    const numbers = app.numbers;
    if (numbers) {
      const finished = Object.values(numbers.pools).reduce((sum, pool) => sum + pool.finished, 0);
      this.rates.take({ finished });
    }
    const known = numbers ? this.rates.of("finished") : 0;
    const now = known ?? 0;
    if (known !== null) this.history.add(now);
    say(this.figures["events/s"], numbers ? rate(now) : "–");
    say(this.figures.waiting, numbers ? brief(numbers.backlog_events) : "–");
    say(this.figures.dead, numbers ? brief(numbers.dead) : "–");
    attribute(this.figures.dead, "data-bad", numbers !== null && numbers.dead > 0);
    const most = Math.max(1, ...this.history.values) * 1.1;
    const points = this.history.values.map((value, i, all) => {
      const x = 240 - (all.length - 1 - i) * (240 / 59);
      return `${x.toFixed(1)},${(42 - (value / most) * 38).toFixed(1)}`;
    });
    if (!points.length) return;
    this.line.setAttribute("d", `M${points.join("L")}`);
    const first = points[0].split(",")[0];
    this.area.setAttribute("d", `M${first},44L${points.join("L")}L240,44Z`);
  }
}
