// What else can be looked at: pools and their workers, state, crashes, the log, versions.

import { get } from "./api.js";
import { attribute, button, empty, h, say } from "./dom.js";
import { ago, brief, bytes, count, moment, percent, plural, rate, seconds } from "./format.js";
import { Poll } from "./live.js";
import { order } from "./orders.js";

// ------------------------------------------------------------------ pools and workers

export class PoolsTab {
  constructor(view) {
    this.view = view;
    this.pools = new Map();
    this.element = h("div", { class: "pools" });
    this.processes = h("tbody", {});
    this.before = new Map();
    this.table = h("div", {}, h("h2", {}, "Processes"),
      h("table", {}, h("thead", {}, h("tr", {}, ...["process", "pid"].map((name) => h("th", { scope: "col" }, name)), ...["processor", "memory"].map((name) => h("th", { scope: "col", class: "number" }, name)))), this.processes));
    this.poll = new Poll((signal) => this.#ask(signal), 2000);
  }

  close() {
    this.poll.stop();
  }

  reshaped() {
    this.pools.clear();
  }

  update() {
    const now = this.view.info?.numbers;
    if (!now) {
      if (this.view.info) this.element.replaceChildren(empty("It does not run", "Pools and workers are there while it does."));
      this.pools.clear();
      return;
    }
    if (!this.pools.size) {
      this.element.replaceChildren(h("div", { class: "cards" }, ...Object.keys(now.pools).map((name) => this.#pool(name))), this.table);
    }
    for (const [name, pool] of Object.entries(now.pools)) this.pools.get(name)?.(pool);
  }

  #pool(name) {
    const spec = this.view.model?.topology.pools.find((pool) => pool.name === name);
    const state = h("span", { class: "state" });
    const reason = h("p", { class: "why" });
    const load = h("div", { class: "meter-fill" });
    const meter = h("div", { class: "meter", role: "meter", "aria-label": "load", "aria-valuemin": "0", "aria-valuemax": "100" }, load);
    const figures = [];
    const figure = (label, value) => {
      const element = h("dd", {});
      figures.push([element, value]);
      return [h("dt", {}, label), element];
    };
    const spawned = (pool) => `${count(pool.workers_spawned)} started${pool.workers_crashed ? `, ${count(pool.workers_crashed)} crashed` : ""}`;
    const coming = (pool) => [pool.workers_starting && `${pool.workers_starting} starting`, pool.workers_leaving && `${pool.workers_leaving} leaving`].filter(Boolean).join(", ");
    const element = h(
      "section",
      { class: "card", "aria-label": `pool ${name}` },
      h("div", { class: "row" }, h("h2", {}, name), state),
      h("p", { class: "muted" }, [spec?.runtime, spec?.isolate && `isolate ${spec.isolate}`, spec?.long && "long"].filter(Boolean).join(" · ")),
      meter,
      h("dl", { class: "about" },
        ...figure("load", (pool) => percent(pool.load)),
        ...figure("workers", (pool) => `${pool.workers_active} busy, ${pool.workers_idle} idle, at most ${pool.workers_limit}`),
        ...figure("", coming),
        ...figure("events/s", () => rate(this.view.numbers.rate("pool", name))),
        ...figure("over 1, 5, 15 min", (pool) => Object.values(pool.rate).map(rate).join(", ")),
        ...figure("waiting", (pool) => `${brief(pool.queue_events)} (${bytes(pool.queue_bytes)})`),
        ...figure("oldest waits", (pool) => (pool.queue_events ? seconds(pool.oldest_seconds) : "–")),
        ...figure("held", (pool) => brief(pool.held)),
        ...figure("latency", (pool) => Object.entries(pool.latency).map(([q, value]) => `p${Math.round(q * 1000) / 10} ${seconds(value)}`).join(", ") || "–"),
        ...figure("since its start", spawned)),
      reason,
    );
    this.pools.set(name, (pool) => {
      say(state, pool.state);
      attribute(state, "data-state", pool.state);
      say(reason, pool.reason);
      reason.hidden = !pool.reason;
      load.style.width = `${Math.round(100 * pool.load)}%`;
      attribute(meter, "aria-valuenow", Math.round(100 * pool.load));
      for (const [element, value] of figures) {
        const text = value(pool);
        say(element, text);
        element.hidden = element.previousSibling.hidden = text === "";
      }
    });
    return element;
  }

  async #ask(signal) {
    if (!this.view.info?.numbers) return;
    const told = await get(this.view.place("processes"), signal);
    const passed = told.now - (this.at ?? told.now);
    this.at = told.now;
    const rows = told.processes.map((process) => {
      const before = this.before.get(process.pid);
      const used = passed > 0 && before !== undefined && process.cpu !== null ? percent(Math.max(0, (process.cpu - before) / passed)) : "–";
      if (process.cpu !== null) this.before.set(process.pid, process.cpu);
      return [process.name, String(process.pid), used, bytes(process.memory)];
    });
    this.processes.replaceChildren(
      ...rows.map(([name, pid, used, memory]) =>
        h("tr", {}, h("td", { "data-label": "process" }, name), h("td", { "data-label": "pid" }, pid), h("td", { "data-label": "processor", class: "number" }, used), h("td", { "data-label": "memory", class: "number" }, memory))),
    );
  }
}

// ------------------------------------------------------------------ state

export class StateTab {
  constructor(view) {
    this.view = view;
    this.node = h("select", { id: "state-node", on: { change: () => this.#list() } });
    this.key = h("input", { id: "state-key", type: "search", autocomplete: "off", spellcheck: "false" });
    this.found = h("div", { class: "found", "aria-live": "polite" });
    this.element = h(
      "div",
      {},
      h("form", { class: "ask", on: { submit: (e) => this.#look(e) } },
        h("span", { class: "field" }, h("label", { for: "state-node" }, "Node"), this.node),
        h("span", { class: "field" }, h("label", { for: "state-key" }, "Key"), this.key),
        h("button", { class: "primary" }, "Look up"),
        button("Keys that begin so", () => this.#list())),
      this.found,
    );
    this.reshaped();
  }

  asked(query) {
    this.wanted = query.get("node") ?? this.wanted;
    if (query.has("key")) this.key.value = query.get("key");
    this.reshaped();
  }

  reshaped() {
    const { model } = this.view;
    if (model === null) return;
    const nodes = model.topology.nodes.filter((node) => node.states.length);
    if (!nodes.length) {
      this.element.replaceChildren(empty("No state", "None of its nodes keeps any."));
      return;
    }
    this.node.replaceChildren(...nodes.map((node) => h("option", { value: node.name, selected: node.name === this.wanted }, node.name)));
    if (this.key.value) this.#look();
    else this.#list();
  }

  async #look(e) {
    e?.preventDefault();
    if (!this.key.value) this.#list();
    else await this.#ask({ node: this.node.value, key: this.key.value }, `${this.node.value} has no state of this key`);
  }

  async #list() {
    await this.#ask({ node: this.node.value, prefix: this.key.value }, `${this.node.value} has no state of such keys`);
  }

  async #ask(query, nothing) {
    try {
      const told = await get(this.view.place("state", query));
      const rows = told.rows.map((row) =>
        h("tr", {},
          h("td", { "data-label": "key" }, row.key),
          h("td", {}, h("pre", {}, row.problem || row.state + (row.state_cut ? `\n… ${count(row.state_cut)} characters more` : "")))));
      const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "key"), h("th", { scope: "col" }, "state")));
      this.found.replaceChildren(
        rows.length ? h("table", { class: "states" }, head, h("tbody", {}, ...rows)) : empty("Nothing", nothing),
        told.more ? h("p", { class: "muted" }, "There are more: say how the key begins.") : "",
      );
    } catch (error) {
      this.found.replaceChildren(empty("It cannot be shown", error.message));
    }
  }
}

// ------------------------------------------------------------------ crashes

export class CrashesTab {
  constructor(view) {
    this.view = view;
    this.element = h("div", {});
    this.poll = new Poll((signal) => this.#ask(signal), 5000);
  }

  close() {
    this.poll.stop();
  }

  async #ask(signal) {
    const { crashes } = await get(this.view.place("crashes"), signal);
    const told = JSON.stringify(crashes);
    if (told === this.told) return;
    this.told = told;
    this.element.replaceChildren(
      crashes.length ? h("ul", { class: "letters plain" }, ...crashes.map((crash) => this.#crash(crash))) : empty("No crashes", "No worker has ended that should not have."),
    );
  }

  #crash(crash) {
    const whole = h("div", { class: "whole", hidden: true });
    const head = h(
      "button",
      { type: "button", class: "letter-head", "aria-expanded": "false" },
      h("span", { class: "what" }, crash.worker),
      h("span", { class: "key-of" }, `pid ${crash.pid}`),
      h("span", { class: "error" }, crash.why.split("\n")[0]),
      h("time", {}, moment(crash.time)),
    );
    head.addEventListener("click", async () => {
      whole.hidden = !whole.hidden;
      head.setAttribute("aria-expanded", String(!whole.hidden));
      if (whole.hidden) return;
      try {
        const all = await get(this.view.place("crashes", { number: crash.number }));
        const lines = all.lines.map(([level, slot, text]) => `${level.padEnd(8)} ${slot ? `[${slot}] ` : ""}${text}`);
        whole.replaceChildren(
          h("p", {}, `It lived for ${seconds(crash.time - crash.since)}.`),
          h("pre", { tabindex: "0" }, all.why),
          h("h3", {}, lines.length ? `The last ${plural(lines.length, "line")} that it printed` : "It had printed nothing"),
          lines.length ? h("pre", { tabindex: "0" }, lines.join("\n")) : "",
        );
      } catch (e) {
        whole.replaceChildren(h("p", { class: "muted" }, e.message));
      }
    });
    return h("li", {}, head, whole);
  }
}

// ------------------------------------------------------------------ the log

export class LogTab {
  constructor(view) {
    this.view = view;
    this.lines = [];
    this.text = h("input", { type: "search", id: "log-text", placeholder: "Only lines with …", "aria-label": "Only lines with this text", autocomplete: "off", on: { input: () => this.#show() } });
    this.follow = h("input", { type: "checkbox", id: "log-follow", checked: true });
    this.out = h("div", { class: "log", tabindex: "0", role: "log", "aria-label": "What it printed last" });
    this.element = h("div", {}, h("div", { class: "ask" }, this.text, this.follow, h("label", { for: "log-follow" }, "follow")), this.out);
    this.poll = new Poll((signal) => this.#ask(signal), 2000);
  }

  close() {
    this.poll.stop();
  }

  async #ask(signal) {
    if (!this.follow.checked && this.lines.length) return;
    const { lines } = await get(this.view.place("log", { limit: 500 }), signal);
    if (lines.length === this.lines.length && lines[lines.length - 1] === this.lines[lines.length - 1]) return;
    this.lines = lines;
    this.#show();
  }

  #show() {
    const wanted = this.text.value.toLowerCase();
    const found = this.lines.filter((line) => line.toLowerCase().includes(wanted));
    const isAtEnd = this.out.scrollTop + this.out.clientHeight > this.out.scrollHeight - 40;
    this.out.replaceChildren(...(found.length ? found.map(lineOf) : [empty("Nothing", this.lines.length ? "No such line among the last 500." : "It has not printed anything.")]));
    if (isAtEnd || !this.wasShown) this.out.scrollTop = this.out.scrollHeight;
    this.wasShown = true;
  }
}

function lineOf(line) {
  const found = /^(\S+Z) \[([^\]]*)\] (.*)$/s.exec(line);
  if (found === null) return h("p", {}, line);
  const isBad = /^(ERROR|CRITICAL)\b/.test(found[3]);
  return h("p", { class: isBad ? "bad" : null }, h("time", {}, found[1].slice(11, 23)), h("span", { class: "who" }, found[2]), found[3]);
}

// ------------------------------------------------------------------ versions

export class VersionsTab {
  constructor(view) {
    this.view = view;
    this.element = h("div", {});
    this.update();
  }

  update() {
    const { info } = this.view;
    if (!info) return;
    const told = JSON.stringify([info.versions, info.digest, info.previous, info.state, info.wanted]);
    if (told === this.told) return;
    this.told = told;
    const mayChange = this.view.mayChange;
    const rows = [...info.versions].reverse().map((version) => {
      const isCurrent = version.digest === info.digest;
      const isPrevious = version.digest === info.previous;
      const acts = [];
      if (!isCurrent && mayChange) {
        acts.push(button("Change to it", () => this.#change(version), { "aria-label": `Change to version ${version.version}` }));
      }
      return h("tr", { "data-chosen": isCurrent },
        h("td", { "data-label": "version" }, h("strong", {}, version.version), " ", isCurrent ? h("span", { class: "state", "data-state": info.state }, info.state) : isPrevious ? h("span", { class: "muted" }, "before") : null),
        h("td", { "data-label": "package" }, h("code", { title: version.digest }, version.digest.slice(0, 12))),
        h("td", { "data-label": "came" }, moment(version.at)),
        h("td", { class: "actions" }, ...acts));
    });
    const previous = info.versions.find((version) => version.digest === info.previous);
    const act = (label, verb, about, attributes) => button(label, () => order(this.view, verb, about), attributes);
    const run = info.wanted === "running"
      ? [act("Restart", "restart"), act("Stop", "stop", {}, { class: "danger" })]
      : [act("Start", "start", {}, { class: "primary" })];
    const back = previous ? [act(`Roll back to ${previous.version}`, "rollback", { title: `Roll back to ${previous.version}?`, text: `${previous.version} ran before ${info.version}. It goes on in the same directory; events wait meanwhile.` })] : [];
    this.element.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "Versions"), mayChange ? h("div", { class: "actions" }, ...back, ...run) : null),
      h("table", {},
        h("thead", {}, h("tr", {}, ...["version", "package", "came"].map((name) => h("th", { scope: "col" }, name)), h("th", {}, h("span", { class: "unseen" }, "what to do")))),
        h("tbody", {}, ...rows)),
      h("p", { class: "muted" }, `Up for ${ago(info.since).replace(" ago", "")}${info.deaths ? `, ${plural(info.deaths, "death")} in a row` : ""}.`),
    );
  }

  #change(version) {
    const text = "It is loaded and its workers are started beside the one that runs; then it goes on in the same directory. If it cannot run, the one before does.";
    return order(this.view, "upgrade", { title: `Change to ${version.version}?`, text, query: { version: version.digest }, done: `changed to ${version.version}` });
  }
}
