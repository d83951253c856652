// Why an event is here: what led to it and what came of it, as a tree over all apps, with who ran when.

import { get } from "./api.js";
import { attribute, empty, h, say } from "./dom.js";
import { ago, count, moment, plural, span } from "./format.js";
import { Poll } from "./live.js";

const GROWING = 8; // seconds for which a trace is asked for again after it has grown
const DEEPEST = 24; // levels that are drawn as such

const link = (app, tab, query) => {
  const search = new URLSearchParams(query).toString();
  return `#/${encodeURIComponent(app)}/${tab}?${search}`;
};

export class TracesTab {
  constructor(view) {
    this.view = view;
    this.wanted = "";
    this.open = new Map();
    this.times = [];
    this.id = h("input", { id: "trace-id", type: "search", autocomplete: "off", spellcheck: "false", placeholder: "of an event, or of a trace" });
    this.found = h("div", { class: "found", "aria-live": "polite", "aria-busy": "true" });
    this.element = h(
      "div",
      { class: "traces" },
      h("form", { class: "ask", on: { submit: (e) => this.#go(e) } },
        h("span", { class: "field wide" }, h("label", { for: "trace-id" }, "Id"), this.id),
        h("button", { class: "primary" }, "Why is it here?"),
        (this.all = h("a", { href: view.link("traces"), hidden: true }, "newest traces"))),
      this.found,
    );
    this.element.addEventListener("keydown", (e) => this.#moved(e));
  }

  close() {
    this.poll?.stop();
  }

  asked(query) {
    this.wanted = query.get("id") ?? "";
    this.id.value = this.wanted;
    this.all.hidden = !this.wanted;
    this.told = null;
    this.times = [];
    this.wasShown = false;
    this.open.clear();
    this.grown = Date.now();
    this.found.replaceChildren(h("p", { class: "muted" }, "…"));
    attribute(this.found, "aria-busy", "true");
    this.poll?.stop();
    this.poll = new Poll((signal) => (this.wanted ? this.#why(signal) : this.#newest(signal)), 2000);
  }

  /** Once a second: how long ago it was goes on. */
  update() {
    for (const [element, time] of this.times) say(element, ago(time));
  }

  #go(e) {
    e.preventDefault();
    const id = this.id.value.trim();
    const query = id ? { id } : {};
    if (id === this.wanted) this.asked(new URLSearchParams(query));
    else location.hash = this.view.link("traces", query);
  }

  async #ask(what, query, signal) {
    try {
      const told = await get(this.view.place(what, query), signal);
      const text = JSON.stringify(told);
      if (text === this.told) return null;
      this.told = text;
      return told;
    } catch (e) {
      if (e.name === "AbortError") throw e;
      this.told = null;
      this.found.replaceChildren(empty("It cannot be told", e.message));
      return null;
    } finally {
      attribute(this.found, "aria-busy", null);
    }
  }

  // ---------------------------------------------------------------- the newest

  async #newest(signal) {
    const told = await this.#ask("traces", { limit: 30 }, signal);
    if (told === null) return;
    if (!told.traces.length) {
      this.found.replaceChildren(h("div", { class: "empty" }, h("p", { class: "big" }, "No traces are kept"), how()));
      return;
    }
    const focused = this.found.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.times = [];
    const longest = Math.max(...told.traces.map((trace) => trace.end - trace.start), 0.001);
    const rows = told.traces.map((trace) => {
      const time = h("time", { title: moment(trace.start) }, ago(trace.start));
      this.times.push([time, trace.start]);
      const bar = h("i", { class: "share-fill" });
      bar.style.width = `${Math.max(1, (100 * (trace.end - trace.start)) / longest).toFixed(1)}%`;
      return h("li", {},
        h("a", { class: "trace-row", href: this.view.link("traces", { id: trace.trace }), "data-bad": trace.errors > 0 },
          h("span", { class: "trace-what" }, h("strong", {}, trace.event), trace.node ? ` → ${trace.node}` : "", trace.key === null ? null : h("span", { class: "key-of" }, trace.key)),
          h("span", { class: "trace-size" }, plural(trace.spans, "span"), trace.errors ? h("span", { class: "bad" }, `, ${count(trace.errors)} failed`) : null),
          h("span", { class: "trace-took" }, h("span", {}, span(trace.end - trace.start)), h("i", { class: "share" }, bar)),
          time));
    });
    this.found.replaceChildren(
      h("h2", {}, "Newest traces"),
      h("p", { class: "muted small" }, `As they went through ${this.view.name}.`),
      h("ul", { class: "trace-list plain" }, ...rows),
    );
    if (focused) this.found.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
  }

  // ---------------------------------------------------------------- one

  async #why(signal) {
    if (this.told && Date.now() - this.grown > GROWING * 1000) return;
    const told = await this.#ask("why", { id: this.wanted }, signal);
    if (told === null) return;
    this.grown = Date.now();
    const focused = document.activeElement?.dataset?.step;
    this.found.replaceChildren(
      ...(told.traced ? told.traces.map((trace) => this.#trace(trace)) : [this.#untraced(told)]),
      told.hidden ? h("p", { class: "muted small" }, "What lies in apps that you may not read is left out.") : "",
    );
    if (focused) this.found.querySelector(`[data-step="${CSS.escape(focused)}"]`)?.focus();
    else if (!this.wasShown) this.found.querySelector("[data-asked]")?.scrollIntoView({ block: "nearest" });
    this.wasShown = true;
  }

  #untraced(told) {
    return h("section", { class: "card untraced" },
      h("h2", {}, "No trace of it is kept"),
      h("p", { class: "mono" }, told.id),
      told.known.length ? h("h3", {}, "What is known of it") : null,
      told.known.length
        ? h("ul", { class: "plain facts" }, ...told.known.map((fate) =>
            h("li", {}, h("span", { class: "chip" }, fate.app), " ", fate.text, fate.letter ? h("span", {}, " ", h("a", { href: link(fate.app, tabOf(fate.text), { id: fate.letter }) }, "show it")) : null)))
        : h("p", { class: "muted" }, "Nor does it wait or lie anywhere here."),
      how());
  }

  #trace(trace) {
    const rows = trace.steps.map((step) => ({ step, depth: step.cause === null ? 0 : -1, rails: [] }));
    const effects = new Map();
    for (const row of rows) {
      const cause = row.step.cause;
      if (!effects.has(cause)) effects.set(cause, []);
      effects.get(cause).push(row);
    }
    // a cause stands before what it caused, but for rings, of which nobody knows where they begin
    for (const row of rows) if (row.depth < 0) row.depth = (rows[row.step.cause]?.depth ?? 0) + 1;
    for (const row of rows) {
      const above = row.step.cause === null ? null : rows[row.step.cause];
      row.isLast = effects.get(row.step.cause).at(-1) === row;
      if (above !== null) row.rails = [...railsBelow(above), row.isLast ? "last" : "branch"].slice(-DEEPEST);
      row.isCause = effects.has(row.step.number);
    }
    const attempts = trace.steps.flatMap((step) => step.attempts);
    const begun = Math.min(...attempts.map((one) => one.start));
    const ended = Math.max(...attempts.map((one) => one.end));
    const nodes = trace.steps.filter((step) => step.node);
    const failed = nodes.flatMap((step) => step.attempts).filter((one) => one.outcome === "error").length;
    const apps = [...new Set(trace.steps.map((step) => step.app))];
    const codes = [...new Set(trace.steps.flatMap((step) => step.attempts.map((one) => (one.code ? `${step.app} ${one.code}` : ""))).filter(Boolean))];
    const scale = { begun, whole: Math.max(1, ended - begun) };
    const figure = (label, value, isBad = false) => h("div", {}, h("dt", {}, label), h("dd", { "data-bad": isBad }, value));
    return h("section", { class: "card trace", "aria-label": `trace ${trace.trace}` },
      h("div", { class: "row" }, h("p", { class: "mono muted small" }, `trace ${trace.trace}`), h("p", { class: "muted small" }, moment(begun / 1e9))),
      h("dl", { class: "figures trace-figures" },
        figure("took", span((ended - begun) / 1e9)),
        figure(nodes.length === 1 ? "step" : "steps", count(nodes.length)),
        figure("failed attempts", count(failed), failed > 0),
        figure(apps.length === 1 ? "app" : "apps", apps.join(", "))),
      codes.length ? h("p", { class: "muted small" }, codes.join(" · ")) : null,
      h("div", { class: "ruler", "aria-hidden": "true" }, ...[0, 0.25, 0.5, 0.75].map((part) => h("span", {}, part ? span((part * scale.whole) / 1e9) : "0"))),
      h("ol", { class: "steps plain", "aria-label": "What caused what" }, ...rows.map((row) => this.#step(row, scale, apps.length > 1))),
      trace.left_out ? h("p", { class: "muted" }, `${plural(trace.left_out, "step")} more: grape why ${trace.trace} tells of all.`) : null);
  }

  #step({ step, depth, rails, isCause }, scale, isFarReaching) {
    const last = step.attempts.at(-1);
    const isOut = !step.node && last.outcome === "out";
    const name = `${step.app} ${step.number}`;
    const isOpen = this.open.get(name) ?? (step.asked && Boolean(step.node));
    const state = step.node ? last.outcome : isOut ? "out" : "in";
    const more = h("div", { class: "step-more", id: `step-${step.number}-${step.app}`, hidden: !isOpen });
    const title = step.node
      ? [h("span", { class: "step-event" }, step.event), h("span", { class: "arrow" }, " → "), h("strong", {}, step.node)]
      : [h("strong", {}, step.event), h("span", { class: "muted" }, isOut ? " went out" : ` came in by ${last.kind || "a client"}`)];
    const took = step.attempts.reduce((sum, one) => sum + (one.end - one.start), 0) / 1e9;
    const head = h("button",
      { type: "button", class: "step-head", "data-step": name, "aria-expanded": String(isOpen), "aria-controls": more.id },
      h("span", { class: "step-title" },
        ...title,
        step.cause === null ? null : h("span", { class: "unseen" }, `, level ${depth + 1}`),
        isFarReaching ? h("span", { class: "chip" }, step.app) : null,
        step.key === null ? null : h("span", { class: "key-of" }, step.key),
        step.attempts.length > 1 && last.outcome !== "call" ? h("span", { class: "chip warn" }, plural(step.attempts.length, "attempt")) : null,
        step.asked ? h("span", { class: "chip accent" }, "asked for") : null),
      h("span", { class: "step-took" }, step.node ? span(took) : ""),
      h("span", { class: "bars", "aria-hidden": "true" }, ...step.attempts.map((one) => bar(one, scale))));
    const toggle = () => {
      more.hidden = !more.hidden;
      head.setAttribute("aria-expanded", String(!more.hidden));
      this.open.set(name, !more.hidden);
      if (!more.hidden && !more.childElementCount) this.#fill(more, step, scale);
    };
    head.addEventListener("click", toggle);
    if (isOpen) this.#fill(more, step, scale);
    return h("li", { class: "step", "data-outcome": state, "data-asked": step.asked, "data-cause": isCause },
      ...rails.map((rail) => h("i", { class: `rail ${rail}`, "aria-hidden": "true" })),
      h("i", { class: "knot", "aria-hidden": "true" }),
      h("div", { class: "step-body" },
        head,
        last.outcome === "error" ? h("p", { class: "step-error" }, reason(last)) : null,
        step.fate ? h("p", { class: "step-fate" }, h("a", { href: link(step.app, tabOf(step.fate), { id: step.letter }) }, `now ${step.fate.split(":")[0]}`)) : null,
        more));
  }

  #fill(more, step, scale) {
    const about = [
      ["event id", step.id], ["app", step.app], ["key", step.key],
      ["caused by", step.cause === null && step.attempts[0].parent && !step.node ? `span ${step.attempts[0].parent} of its sender` : null],
    ].filter(([, value]) => value);
    const attempts = step.attempts.map((one) => h("li", { "data-outcome": one.outcome },
      h("p", { class: "attempt-line" },
        h("strong", {}, step.attempts.length > 1 || one.attempt > 1 ? `attempt ${one.attempt}: ` : "", OUTCOMES[one.outcome]?.(one) ?? one.outcome),
        h("span", { class: "muted" }, ` ${span((one.end - one.start) / 1e9)} at +${span((one.start - scale.begun) / 1e9)}`)),
      one.outcome === "error" ? h("pre", { tabindex: "0" }, reason(one)) : null,
      h("dl", { class: "about" },
        ...[
          ["code", one.code], ["worker", one.worker],
          ["state", one.state?.length ? one.state.map((name) => (name.endsWith("!") ? `${name.slice(0, -1)} (written)` : `${name} (read)`)).join(", ") : ""],
        ].filter(([, value]) => value).flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]))));
    const links = [
      step.node && step.key !== null && step.attempts.some((one) => one.state?.length) ? h("a", { href: link(step.app, "state", { node: step.node, key: step.key }) }, "Its state now") : null,
      step.app !== this.view.name ? h("a", { href: `#/${encodeURIComponent(step.app)}` }, `The graph of ${step.app}`) : null,
    ].filter(Boolean);
    more.append(
      h("dl", { class: "about" }, ...about.flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])),
      step.node ? h("ol", { class: "attempts plain" }, ...attempts) : "",
      links.length ? h("p", { class: "links" }, ...links) : "",
    );
  }

  /** Up and down from step to step, right opens, left closes. */
  #moved(e) {
    const head = e.target.closest?.(".step-head");
    if (!head || e.ctrlKey || e.metaKey || e.altKey) return;
    const all = [...this.found.querySelectorAll(".step-head")];
    const to = { ArrowDown: all.indexOf(head) + 1, ArrowUp: all.indexOf(head) - 1, Home: 0, End: all.length - 1 }[e.key];
    const isOpen = head.getAttribute("aria-expanded") === "true";
    if (to !== undefined) all[to]?.focus();
    else if ((e.key === "ArrowRight" && !isOpen) || (e.key === "ArrowLeft" && isOpen)) head.click();
    else return;
    e.preventDefault();
  }
}

/** What of the lines beside a step goes on beside what it caused. */
const railsBelow = (row) => (row.rails.length ? [...row.rails.slice(0, -1), row.isLast ? "" : "on"] : []);

const OUTCOMES = {
  ok: () => "ok",
  error: () => "failed",
  call: (one) => `left, to wait for the answer to ${one.kind}`,
};

/** Why an attempt failed, with its kind, which the text may begin with. */
const reason = (one) => (one.text.startsWith(one.kind) ? one.text : `${one.kind}: ${one.text}`);

const tabOf = (fate) => (/\b(dead letter|stopped)\b/.test(fate) ? "dead" : "held");

function bar(one, { begun, whole }) {
  const element = h("i", { class: "run", "data-outcome": one.outcome });
  element.style.left = `${((100 * (one.start - begun)) / whole).toFixed(3)}%`;
  element.style.width = `${((100 * (one.end - one.start)) / whole).toFixed(3)}%`;
  return element;
}

function how() {
  return h("div", { class: "muted small how" },
    h("p", {}, "Traced is what comes with a W3C traceparent header that is sampled, what the API tab sends with “trace it”, what ", h("code", {}, "grape emit --trace"), " hands in, and the share of events that ", h("code", {}, "trace = 0.01"), " in grape.toml says. Traces are kept for a while (", h("code", {}, "trace-age"), ", 1 h)."));
}
