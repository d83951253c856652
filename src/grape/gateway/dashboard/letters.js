// Dead letters and held events: how they failed, page by page, and what becomes of them.

import { change, get } from "./api.js";
import { button, confirmed, empty, h, say, toast } from "./dom.js";
import { ago, count, moment, plural } from "./format.js";
import { icon } from "./icons.js";

const PAGE = 50;

/** An error's text without the kind that stands before it. */
const plain = (kind, text) => (kind && text.startsWith(`${kind}: `) ? text.slice(kind.length + 2) : text);
const WORDS = {
  dead: { one: "dead letter", none: "No dead letters", good: "Nothing was given up.", retry: "put back", again: "Retry" },
  held: { one: "held event", none: "Nothing is held", good: "No event waits to be tried again.", retry: "due at once", again: "Try now" },
};

export class LettersTab {
  constructor(view, kind) {
    this.view = view;
    this.kind = kind;
    this.words = WORDS[kind];
    this.filter = {};
    this.before = [];
    this.after = "";
    this.kinds = h("div", { class: "kinds" });
    this.heading = h("h2", {});
    this.list = h("ul", { class: "letters plain" });
    this.back = button("Back", () => this.#turn(false));
    this.on = button("Next", () => this.#turn(true));
    this.page = h("span", { class: "muted" });
    this.pager = h("div", { class: "pager" }, this.back, this.page, this.on);
    this.element = h("div", {}, this.kinds, this.heading, this.list, this.pager);
    this.counted();
  }

  /** Which are to be shown: in the address, so that it can be sent to others. */
  asked(query) {
    this.filter = Object.fromEntries(["node", "event", "kind", "key"].flatMap((name) => (query.has(name) ? [[name, query.get(name)]] : [])));
    this.one = query.get("id") ?? "";
    this.before = [];
    this.after = "";
    this.told = null;
    this.counted();
    this.#load();
  }

  // ---------------------------------------------------------------- kinds

  counted() {
    const found = this.view.letters?.[this.kind];
    if (!found) return;
    const told = JSON.stringify([found.kinds.map((kind) => ({ ...kind, text: "", last: 0 })), this.filter]);
    if (told === this.told) return;
    const isNew = this.known !== undefined && this.known !== found.count && !this.after && !this.list.querySelector("[aria-expanded=true]") && !this.list.contains(document.activeElement);
    this.told = told;
    this.known = found.count;
    if (isNew) this.#load();
    if (!found.kinds.length) {
      this.kinds.replaceChildren();
      return;
    }
    const rows = found.kinds.slice(0, 100).map((kind) => {
      const alike = { node: kind.node, event: kind.event, kind: kind.kind };
      const isShown = this.#isFilter(alike);
      return h("tr", { "data-chosen": isShown },
        h("td", { "data-label": "slot" }, h("a", { href: this.view.link(this.kind, isShown ? {} : alike), "aria-current": isShown ? "true" : null }, `${kind.event} → ${kind.node || "nobody"}`)),
        h("td", { "data-label": "error" }, h("code", {}, kind.kind || "–"), h("span", { class: "said" }, plain(kind.kind, kind.text))),
        h("td", { "data-label": "how many", class: "number" }, count(kind.count)),
        h("td", { "data-label": "last" }, ago(kind.last)),
        h("td", { class: "actions" }, ...this.#actions(`all ${plural(kind.count, this.words.one)} of ${kind.event} → ${kind.node} with ${kind.kind}`, alike, "all")));
    });
    const all = found.kinds.length > 1 ? h("div", { class: "actions" }, ...this.#actions(`all ${plural(found.count, this.words.one)}`, { all: true }, "all")) : null;
    this.kinds.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "How they failed"), all),
      h("table", {},
        h("thead", {}, h("tr", {}, ...["slot", "error", "how many", "last"].map((name) => h("th", { scope: "col", class: name === "how many" ? "number" : null }, name)), h("th", {}, h("span", { class: "unseen" }, "what to do")))),
        h("tbody", {}, ...rows)),
    );
  }

  #isFilter(alike) {
    return Object.entries(alike).every(([name, value]) => this.filter[name] === value);
  }

  #actions(what, which, suffix = "") {
    if (!this.view.mayChange) return [];
    const { again } = this.words;
    return [
      button(suffix ? `${again} ${suffix}` : again, () => this.#change("retry", what, which, Boolean(suffix)), { "aria-label": `${again} ${what}` }),
      button(suffix ? `Drop ${suffix}` : "Drop", () => this.#change("drop", what, which, true), { class: "danger", "aria-label": `Drop ${what}` }),
    ];
  }

  async #change(action, what, which, asks) {
    const texts = {
      retry: ["Try again?", this.kind === "dead" ? `${what}: back into the log, for the node that failed.` : `${what}: tried at once, not when the back-off ends.`, this.words.again],
      drop: ["Drop for good?", `${what}: gone, and nothing brings that back.`, "Drop"],
    }[action];
    if (asks && !(await confirmed(...texts, action === "drop"))) return;
    try {
      const told = await change(this.view.place(`${this.kind}/${action}`), which);
      const done = action === "retry" ? this.words.retry : "dropped";
      toast(`${plural(told.changed, this.words.one)} ${done}`);
      if (told.refused_count) toast(`${count(told.refused_count)} refused: ${Object.values(told.refused)[0]}`, true);
    } catch (e) {
      toast(e.message, true);
    }
    this.view.kinds.now();
    this.#load();
  }

  // ---------------------------------------------------------------- one by one

  #turn(isOn) {
    if (isOn) {
      this.before.push(this.after);
      this.after = this.next;
    } else {
      this.after = this.before.pop() ?? "";
    }
    this.#load();
    this.heading.scrollIntoView({ block: "nearest" });
  }

  async #load() {
    const mine = (this.loading = {});
    let found;
    try {
      found = this.one
        ? { letters: [await get(this.view.place(`${this.kind}/letter`, { id: this.one }))], next: "" }
        : await get(this.view.place(this.kind, { ...this.filter, after: this.after || null, limit: PAGE }));
    } catch (e) {
      if (mine === this.loading) this.list.replaceChildren(h("li", {}, empty("They cannot be shown", e.message)));
      return;
    }
    if (mine !== this.loading) return;
    this.next = found.next;
    const { node, event, kind, key } = this.filter;
    const about = this.one || [event && node ? `${event} → ${node}` : node ?? event, kind, key].filter(Boolean).join(", ");
    this.heading.replaceChildren(
      found.letters.length || about ? (about ? `${about} ` : `All ${this.words.one}s`) : "",
      about ? h("a", { class: "small", href: this.view.link(this.kind) }, "show all") : "",
    );
    this.list.replaceChildren(
      ...(found.letters.length ? found.letters.map((letter) => this.#letter(letter)) : [h("li", {}, empty(this.words.none, this.words.good))]),
    );
    if (this.one) this.list.querySelector("button")?.click();
    this.pager.hidden = !this.before.length && !found.next;
    this.back.disabled = !this.before.length;
    this.on.disabled = !found.next;
    say(this.page, `page ${this.before.length + 1}`);
  }

  #letter(letter) {
    const whole = h("div", { class: "whole", hidden: true });
    const head = h(
      "button",
      { type: "button", class: "letter-head", "aria-expanded": "false" },
      h("span", { class: "what" }, `${letter.event} → ${letter.node || "nobody"}`),
      letter.key === null ? null : h("span", { class: "key-of" }, letter.key),
      letter.status === "dead" ? null : h("span", { class: "state", "data-state": letter.status }, letter.status),
      h("span", { class: "error" }, letter.kind ? h("code", {}, letter.kind) : null, plain(letter.kind, letter.text)),
      h("time", {}, letter.failed ? ago(letter.failed) : letter.due ? `next ${moment(letter.due).slice(11)}` : ""),
    );
    head.addEventListener("click", async () => {
      whole.hidden = !whole.hidden;
      head.setAttribute("aria-expanded", String(!whole.hidden));
      if (!whole.hidden) await this.#open(letter, whole);
    });
    return h("li", { "data-letter": letter.id }, head, whole);
  }

  async #open(letter, whole) {
    let all;
    try {
      all = await get(this.view.place(`${this.kind}/letter`, { id: letter.id }));
    } catch (e) {
      whole.replaceChildren(h("p", { class: "muted" }, e.message));
      return;
    }
    const about = [
      ["id", all.id], ["event id", all.event_id], ["key", all.key], ["attempts", String(all.attempts)],
      ["made", moment(all.created)], ["given up", moment(all.failed)], ["origin", all.origin],
    ];
    whole.replaceChildren(
      h("dl", { class: "about" }, ...about.filter(([, value]) => value).flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])),
      h("h3", {}, "Data"),
      h("pre", { tabindex: "0" }, all.problem ?? (all.data + (all.data_cut ? `\n… ${count(all.data_cut)} characters more` : ""))),
      ...(all.trace || all.text ? [h("h3", {}, all.trace ? "Traceback" : "Error"), h("pre", { tabindex: "0" }, all.trace || all.text)] : []),
      h("div", { class: "actions" },
        all.event_id ? h("a", { class: "button", href: this.view.link("traces", { id: all.event_id }) }, icon("trace"), "Why is it here?") : null,
        ...this.#actions(all.id, { ids: [all.id] })),
    );
  }
}
