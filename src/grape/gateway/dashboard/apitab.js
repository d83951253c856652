// What others can do with an app over HTTP, from the server's own description: each event with its schema, a form that
// sends one and the line for a shell; each output with its verbs, and what comes into it.

import { get, isThere, send, token } from "./api.js";
import { attribute, button, empty, h, say, toast } from "./dom.js";
import { bytes, count, moment } from "./format.js";
import { compact, indented, members } from "./json.js";
import { Poll } from "./live.js";
import { Schemas } from "./schema.js";
import { Sending, curl, lineOf } from "./sending.js";
import { Tail } from "./tail.js";

const SHOWN = 100; // events of an output
const DOCUMENTS = [["/openapi.json", "OpenAPI"], ["/asyncapi.json", "AsyncAPI"]];
const JSON_TYPE = "application/json";
const STATES = { "": "", live: "live", again: "again at once", bad: "it has ended" };

const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

/** What stands at a name, and not in what every object has. */
const own = (value, name) => (value !== null && typeof value === "object" && Object.hasOwn(value, name) ? value[name] : undefined);
const schemaIn = (content) => own(own(own(content, "content"), JSON_TYPE), "schema");

/** The operations of one app, as the document has them: by event, and by output and verb. */
export function operationsOf(description, app) {
  const found = { events: new Map(), outputs: new Map() };
  for (const [path, item] of Object.entries(own(description, "paths") ?? {})) {
    const parts = path.split("/");
    if (parts[1] !== "apps" || decoded(parts[2] ?? "") !== app || parts.length < 5) continue;
    const name = decoded(parts[4]);
    if (parts[3] === "events" && parts.length === 5 && own(item, "post")) {
      found.events.set(name, { operation: item.post, parameters: item.parameters ?? [] });
    } else if (parts[3] === "outputs") {
      if (!found.outputs.has(name)) found.outputs.set(name, []);
      for (const method of ["get", "post"]) {
        const operation = own(item, method);
        if (operation) found.outputs.get(name).push({ method: method.toUpperCase(), verb: parts[5] ?? "", operation });
      }
    }
  }
  for (const name of found.outputs.keys()) found.events.delete(name); // what is pushed into one is no slot's event
  return found;
}

export class ApiTab {
  constructor(view) {
    this.view = view;
    this.wanted = {};
    this.chosen = null;
    this.part = null;
    this.list = h("nav", { class: "api-list", "aria-label": "Events and outputs" });
    this.body = h("div", { class: "api-body" });
    this.notice = h("p", { class: "notice soft", hidden: true });
    this.links = h("p", { class: "api-links muted small" });
    this.element = h("div", { class: "api" }, this.notice, h("div", { class: "api-stage" }, this.list, this.body), this.links);
    if (view.info !== null) this.#load(); // else once it is known what the app hears
    this.#link();
  }

  close() {
    this.part?.close();
  }

  reshaped() {
    this.#load();
  }

  asked(query) {
    this.wanted = query.has("output") ? { kind: "output", name: query.get("output") } : query.has("event") ? { kind: "event", name: query.get("event") } : {};
    this.#choose();
  }

  update() {
    const { info, mayEmit, name } = this.view;
    if (!info) return;
    const texts = [
      mayEmit ? "" : `This token may look, but not hand in: that takes ${name}:emit.`,
      info.state === "paused" ? "The app is paused: what is handed in waits, and a call is answered once it goes on." : "",
      info.wanted !== "running" ? `The app is ${info.state}: it takes nothing in.` : "",
    ].filter(Boolean);
    this.notice.hidden = !texts.length;
    say(this.notice, texts.join(" "));
    this.part?.allow?.(mayEmit && info.wanted === "running");
  }

  async #load() {
    const mine = (this.loading = {});
    let description = null;
    try {
      description = await get("/openapi.json");
    } catch {
      // the token may not hand in, so it does not see how: what the topology says is left
    }
    if (mine !== this.loading) return;
    const { model } = this.view;
    const topology = model?.topology ?? { slots: [], outputs: [] };
    const found = operationsOf(description, this.view.name);
    this.shapes = JSON.stringify(own(description, "components") ?? null);
    const told = JSON.stringify([[...found.events], [...found.outputs], topology, this.shapes]);
    if (told === this.told) return;
    this.told = told;
    this.schemas = new Schemas(description);
    for (const slot of topology.slots) if (!found.events.has(slot.event)) found.events.set(slot.event, null);
    for (const output of topology.outputs) if (!found.outputs.has(output)) found.outputs.set(output, []);
    this.found = found;
    this.#draw();
  }

  /** Links to the whole documents: with a token they are fetched, as a link cannot say who asks. */
  async #link() {
    const documents = [];
    for (const [path, label] of DOCUMENTS) if (await isThere(path).catch(() => false)) documents.push([path, label]);
    if (!documents.length) return;
    const save = async (e, path) => {
      if (!token.get()) return;
      e.preventDefault();
      const answer = await send(path, {}).catch((error) => ({ isOk: false, text: error.message }));
      if (!answer.isOk) return toast(answer.text, true);
      const link = h("a", { href: URL.createObjectURL(new Blob([answer.text], { type: JSON_TYPE })), download: path.slice(1) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
    this.links.replaceChildren("All of it, for programs: ", ...documents.flatMap(([path, label], i) => [i ? " · " : "", h("a", { href: path, on: { click: (e) => save(e, path) } }, label)]));
  }

  // ---------------------------------------------------------------- which

  #draw() {
    const { events, outputs } = this.found;
    const entry = (kind, name, badge) =>
      h("li", {}, h("a", { href: this.view.link("api", { [kind]: name }), "data-kind": kind, "data-name": name }, h("span", { class: `method ${badge.toLowerCase()}` }, badge), h("span", { class: "entry" }, name)));
    const part = (title, kind, names, badge) =>
      names.length ? [h("h3", {}, title), h("ul", { class: "plain" }, ...[...names].sort().map((name) => entry(kind, name, badge)))] : [];
    this.list.replaceChildren(...part("Events", "event", [...events.keys()], "POST"), ...part("Outputs", "output", [...outputs.keys()], "GET"));
    this.#choose();
  }

  #choose() {
    if (!this.found) return;
    const { events, outputs } = this.found;
    let { kind, name } = this.wanted;
    const isKnown = kind === "event" ? events.has(name) : kind === "output" && outputs.has(name);
    if (!isKnown) {
      kind = events.size ? "event" : "output";
      name = [...(events.size ? events : outputs).keys()].sort()[0];
    }
    for (const link of this.list.querySelectorAll("a")) attribute(link, "aria-current", link.dataset.kind === kind && link.dataset.name === name ? "page" : null);
    const id = JSON.stringify([kind, name, (kind === "event" ? events : outputs).get(name), this.shapes]);
    if (this.chosen === id) return; // what somebody has typed stays
    this.chosen = id;
    this.part?.close();
    this.part = null;
    if (name === undefined) {
      this.body.replaceChildren(empty("Nothing to ask for yet", "The app has not run, so nobody knows what it takes."));
      return;
    }
    this.part = kind === "event" ? new EventPart(this.view, this.schemas, name, events.get(name)) : new OutputPart(this.view, this.schemas, name, outputs.get(name));
    this.body.replaceChildren(this.part.element);
    this.update();
  }
}

const address = (method, path) => h("p", { class: "address" }, h("span", { class: `method ${method.toLowerCase()}` }, method), h("code", {}, path));

// ------------------------------------------------------------------ an event

class EventPart {
  constructor(view, schemas, name, found) {
    const schema = schemaIn(own(found?.operation, "requestBody"));
    const answer = schemaIn(own(own(found?.operation, "responses"), "200"));
    const slots = view.model?.slots.filter((slot) => slot.event === name) ?? [];
    this.sending = new Sending(view, name, JSON.stringify(schemas.sample(schema), null, 2));
    const isBare = schemas.isAny(schema) && schemas.isAny(answer);
    this.element = h("section", { class: "card", "aria-label": `event ${name}` },
      address("POST", view.place(`events/${encodeURIComponent(name)}`)),
      h("h2", {}, name),
      slots.length ? h("p", { class: "muted small" }, "heard by ", ...slots.flatMap((slot, i) => [i ? ", " : "", h("strong", {}, slot.node)])) : null,
      h("div", { class: "api-columns" },
        h("div", {},
          h("h3", {}, "What it takes"),
          schemas.view(schema),
          h("h3", {}, "What answers a call"),
          schemas.view(answer),
          isBare ? this.sending.shell : null),
        h("div", { class: "try" }, h("h3", {}, "Try it"), this.sending.element, isBare ? null : this.sending.shell)));
  }

  allow(isAllowed) {
    this.sending.allow(isAllowed);
  }

  close() {
    this.sending.close();
  }
}

// ------------------------------------------------------------------ an output

class OutputPart {
  constructor(view, schemas, name, found) {
    this.view = view;
    this.name = name;
    this.path = view.place(`outputs/${encodeURIComponent(name)}`);
    this.tail = null;
    this.rows = [];
    this.came = 0;
    this.state = h("span", { class: "state" });
    this.number = h("span", { class: "muted small" });
    this.events = h("ol", { class: "tail plain", reversed: true, "aria-label": "What came, the newest first", tabindex: "0" });
    this.fromNow = button("Look on from now", () => this.#begin(""), { class: "primary" });
    this.fromStart = button("With what is kept", () => this.#begin("?from=start"));
    this.halt = button("Stop", () => this.#stop(), { hidden: true });
    this.consumers = h("div", {});
    const schema = this.#schemaOf(schemas, found);
    this.element = h("section", { class: "card", "aria-label": `output ${name}` },
      address("GET", this.path),
      h("h2", {}, name),
      this.consumers,
      h("h3", {}, "What comes"),
      h("div", { class: "actions" }, this.fromNow, this.fromStart, this.halt, this.state, this.number),
      this.events,
      schema === undefined ? null : [h("h3", {}, "What an event has"), schemas.view(schema)],
      h("h3", {}, "What can be asked"),
      h("ul", { class: "verbs plain" }, ...found.map((one) => this.#verb(schemas, one))));
    this.poll = new Poll((signal) => this.#askConsumers(signal), 5000);
  }

  close() {
    this.#stop();
    this.poll.stop();
  }

  /** Of what is taken out, if that says more than that there is something. */
  #schemaOf(schemas, found) {
    const pop = found.find((one) => one.verb === "pop") ?? found.find((one) => one.verb === "peek");
    const answer = schemaIn(own(own(pop?.operation, "responses"), "200"));
    const events = own(own(schemas.solid(answer).schema, "properties"), "events");
    return own(schemas.solid(events).schema, "items");
  }

  #verb(schemas, { method, verb, operation }) {
    const path = `${this.path}${verb && `/${verb}`}`;
    const schema = schemaIn(own(operation, "requestBody"));
    const sample = schema === undefined ? undefined : compact(JSON.stringify(schemas.sample(schema, true)));
    const line = lineOf(() => curl(method, path, { headers: sample === undefined ? {} : { "content-type": JSON_TYPE }, body: sample }), `the curl line of ${verb || "its consumers"}`);
    return h("li", {},
      h("details", {},
        h("summary", {}, h("span", { class: `method ${method.toLowerCase()}` }, method), h("code", {}, verb ? `…/${verb}` : this.path), h("span", { class: "muted" }, String(operation.summary ?? ""))),
        h("div", { class: "field-body" }, schema === undefined ? null : schemas.view(schema), line.element)));
  }

  async #askConsumers(signal) {
    let told;
    try {
      told = await get(this.path, signal);
    } catch (e) {
      if (e.name !== "AbortError") this.consumers.replaceChildren(h("p", { class: "muted small" }, e.message));
      throw e;
    }
    const text = JSON.stringify(told);
    if (text === this.told) return;
    this.told = text;
    const rows = told.consumers.map((one) =>
      h("tr", {}, h("td", { "data-label": "consumer" }, one.consumer), ...["lent", "again", "acked", "redelivered", "dead"].map((name) => h("td", { "data-label": name, class: "number" }, count(one[name])))));
    this.consumers.replaceChildren(
      h("p", { class: "muted small" }, `${bytes(told.kept)} are kept${told.expired ? `; ${bytes(told.expired)} were let go of, as they were too old or too much` : ""}.`),
      rows.length
        ? h("table", {},
            h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "consumer"), ...["lent", "again", "acked", "redelivered", "dead"].map((name) => h("th", { scope: "col", class: "number" }, name)))),
            h("tbody", {}, ...rows))
        : h("p", { class: "muted small" }, "Nobody takes it yet: peek, pop or grape pull would."));
  }

  // ---------------------------------------------------------------- looking on

  #begin(begin) {
    this.#stop();
    this.rows = [];
    this.came = 0;
    this.events.replaceChildren();
    this.halt.hidden = false;
    this.tail = new Tail(`${this.path}/tail`, begin, (texts, number) => this.#heard(texts, number), (state, text) => this.#said(state, text));
  }

  #stop() {
    this.tail?.stop();
    this.tail = null;
    this.halt.hidden = true;
    this.#said("", "");
  }

  #said(state, text) {
    say(this.state, text || STATES[state]);
    attribute(this.state, "data-state", state === "live" ? "running" : state === "bad" ? "broken" : null);
  }

  #heard(texts, number) {
    this.came += number;
    say(this.number, `${count(this.came)} came${this.came > SHOWN ? `, the last ${SHOWN} are shown` : ""}`);
    const fresh = texts.map((text) => this.#event(text)).reverse();
    // what is kept comes partition by partition
    this.rows = [...fresh, ...this.rows].sort((a, b) => b.created - a.created).slice(0, SHOWN);
    const kept = new Set(this.rows.map((row) => row.element));
    for (const element of [...this.events.children]) if (!kept.has(element)) element.remove();
    this.rows.forEach(({ element }, i) => {
      if (this.events.children[i] !== element) this.events.insertBefore(element, this.events.children[i] ?? null);
    });
  }

  #event(text) {
    const parts = members(text); // as it came: of a large number JavaScript keeps not every digit
    const value = (name) => JSON.parse(parts.get(name) ?? "null");
    const [id, key, event] = [value("id"), value("key"), value("event")];
    const data = parts.get("data") ?? "";
    const whole = h("pre", { tabindex: "0" });
    const details = h("details", {},
      h("summary", {},
        h("time", {}, moment(value("created")).slice(11)),
        event === this.name ? null : h("span", { class: "chip" }, event),
        key === null ? null : h("span", { class: "key-of" }, key),
        h("code", {}, data.slice(0, 300))),
      whole);
    details.addEventListener("toggle", () => say(whole, `${indented(data)}\n\nid ${id}`));
    const element = h("li", {}, details,
      h("a", { class: "small", href: this.view.link("traces", { id }), "aria-label": `Why is event ${id} here?` }, "why?"));
    return { created: value("created"), element };
  }
}
