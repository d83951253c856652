// The form that hands one event in, or calls with it; and the same as a line for a shell.

import { send, token } from "./api.js";
import { attribute, button, copied, h, say } from "./dom.js";
import { span } from "./format.js";
import { compact, harmless, indented, problemOf } from "./json.js";

const MOST_WAIT = 300;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A line for a shell. What is asked for stands in single quotes, where a shell looks at nothing. */
export function curl(method, path, { headers = {}, body } = {}) {
  const parts = [`curl ${method === "GET" ? "" : "-X POST "}${quoted(`${location.origin}${path}`)}`];
  if (token.get()) parts.push('-H "authorization: Bearer $GRAPE_TOKEN"');
  for (const [name, value] of Object.entries(headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (body !== undefined) parts.push(`--data-raw ${quoted(body)}`);
  return harmless(parts.join(" \\\n  "));
}

/** The line, and what copies it. */
export function lineOf(text, label) {
  const line = h("pre", { class: "curl", tabindex: "0" }, text());
  const copy = button("Copy", () => copied(text()), { "aria-label": `Copy ${label}`, class: "copy" });
  return { element: h("div", { class: "curl-box" }, line, copy), update: () => say(line, text()) };
}

const hex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((one) => one.toString(16).padStart(2, "0")).join("");

let forms = 0;

export class Sending {
  /** view: of the app. event: its name. sample: text to begin with. */
  constructor(view, event, sample) {
    this.view = view;
    this.event = event;
    this.abort = null;
    const own = `send-${++forms}`;
    const field = (label, name, attributes, note) => {
      const input = h("input", { id: `${own}-${name}`, autocomplete: "off", spellcheck: "false", ...attributes, on: { input: () => this.#changed() } });
      return [h("label", { for: `${own}-${name}` }, label, note ? h("span", { class: "muted" }, ` ${note}`) : null), input];
    };
    const option = (value, label, isChecked) =>
      h("label", { class: "choice" }, h("input", { type: "radio", name: `${own}-how`, value, checked: isChecked, on: { change: () => this.#changed() } }), label);

    this.data = h("textarea", { id: `${own}-data`, rows: Math.min(18, Math.max(5, sample.split("\n").length)), spellcheck: "false", autocomplete: "off", autocapitalize: "off", "aria-describedby": `${own}-wrong`, on: { input: () => this.#changed() } });
    this.data.value = sample;
    this.wrong = h("p", { class: "why", id: `${own}-wrong`, role: "status" });
    const [keyLabel, key] = field("Key", "key", { type: "text" });
    const [idLabel, id] = field("Its own id", "id", { type: "text", maxlength: 255 }, "the same one is accepted once");
    const [deadlineLabel, deadline] = field("Deadline", "deadline", { type: "number", min: 0, step: "any" }, "seconds");
    const [waitLabel, wait] = field("Wait", "wait", { type: "number", min: 0, max: MOST_WAIT, step: "any", value: 30 }, "seconds");
    const [traceLabel, trace] = field("Trace it", "trace", { type: "checkbox" });
    Object.assign(this, { key, id, deadline, wait, trace });
    this.calls = option("call", "Call, and wait for the answer", false);
    this.waits = h("span", { class: "field" }, waitLabel, wait);
    this.go = h("button", { class: "primary" }, "Send");
    this.cancel = button("Cancel", () => this.abort?.abort(), { hidden: true });
    this.fields = h("fieldset", {},
      h("legend", { class: "unseen" }, `Send ${event}`),
      h("label", { for: `${own}-data` }, "Data", h("span", { class: "muted" }, " JSON")),
      this.data, this.wrong,
      h("div", { class: "choices", role: "radiogroup", "aria-label": "How" }, option("emit", "Hand it in", true), this.calls),
      h("div", { class: "form-row" }, h("span", { class: "field" }, keyLabel, key), this.waits),
      h("details", {}, h("summary", {}, "More"),
        h("div", { class: "form-row" }, h("span", { class: "field" }, idLabel, id), h("span", { class: "field" }, deadlineLabel, deadline))),
      h("div", { class: "actions send-actions" }, this.go, this.cancel, h("span", { class: "field check" }, trace, traceLabel)));
    this.result = h("div", { class: "result", "aria-live": "polite" });
    this.line = lineOf(() => this.#curl(), `the curl line of ${event}`);
    this.shell = h("div", {}, h("h3", {}, "The same in a shell"), this.line.element);
    this.element = h("div", { class: "sending" }, h("form", { on: { submit: (e) => this.#send(e) } }, this.fields), this.result);
    this.#changed();
  }

  close() {
    this.abort?.abort();
  }

  /** Whether it may be sent, and what is to be said about that. */
  allow(isAllowed) {
    this.fields.disabled = !isAllowed;
  }

  get #isCall() {
    return this.calls.querySelector("input").checked;
  }

  #place() {
    const query = new URLSearchParams();
    if (this.key.value) query.set("key", this.key.value);
    if (this.deadline.value) query.set("deadline", this.deadline.value);
    if (this.#isCall) query.set("wait", this.wait.value || "30");
    const search = query.toString();
    return `${this.view.place(`events/${encodeURIComponent(this.event)}`)}${search && `?${search}`}`;
  }

  #headers(traceparent) {
    return {
      "content-type": "application/json",
      ...(this.id.value ? { "idempotency-key": this.id.value } : {}),
      ...(traceparent ? { traceparent } : {}),
    };
  }

  #curl() {
    return curl("POST", this.#place(), { headers: this.#headers(""), body: compact(this.data.value) || "null" });
  }

  #changed() {
    this.waits.hidden = !this.#isCall;
    say(this.go, this.#isCall ? "Call" : "Send");
    const problem = this.data.value.trim() ? problemOf(this.data.value) : "";
    attribute(this.data, "aria-invalid", problem ? "true" : null);
    say(this.wrong, problem && `This is no JSON: ${problem}`);
    this.wrong.hidden = !problem;
    this.go.disabled = Boolean(problem);
    this.line?.update();
  }

  async #send(e) {
    e.preventDefault();
    if (this.abort !== null || this.go.disabled) return;
    const trace = this.trace.checked ? hex(16) : "";
    this.abort = new AbortController();
    this.go.disabled = true;
    this.cancel.hidden = !this.#isCall;
    this.result.replaceChildren(h("p", { class: "muted" }, this.#isCall ? "waiting for the answer …" : "…"));
    try {
      const body = this.data.value.trim() || "null";
      // the parent is nobody's: the trace begins here
      const headers = this.#headers(trace && `00-${trace}-${"f".repeat(16)}-01`);
      this.#answered(await send(this.#place(), { method: "POST", headers, body, signal: this.abort.signal }), trace);
    } catch (error) {
      this.result.replaceChildren(h("p", { class: "why" }, error.name === "AbortError" ? "Nobody waits for the answer any more; the event may have been taken in." : error.message));
    } finally {
      this.abort = null;
      this.cancel.hidden = true;
      this.#changed();
    }
  }

  #answered({ status, isOk, text, milliseconds }, trace) {
    const problem = isOk ? null : problemIn(text);
    this.result.replaceChildren(
      h("p", { class: "row" },
        h("span", {}, h("span", { class: "state", "data-state": isOk ? "running" : "broken" }, String(status)), h("span", { class: "muted" }, ` after ${span(milliseconds / 1000)}`)),
        trace && isOk ? h("a", { href: this.view.link("traces", { id: trace }) }, "See what it did") : null),
      problem ? h("p", { class: "why" }, `${problem.code}: ${problem.detail}`) : h("pre", { tabindex: "0", "aria-label": "The answer" }, isJson(text) ? indented(text) : text),
    );
  }
}

const isJson = (text) => problemOf(text) === "";

function problemIn(text) {
  try {
    const found = JSON.parse(text);
    return typeof found?.detail === "string" ? found : null;
  } catch {
    return null;
  }
}
