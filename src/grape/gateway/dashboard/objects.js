// The objects of an app: namespaces, what lies in them, and all that is known of one. Their bytes are never shown as
// anything but a file that is saved.

import { get, place, send, token } from "./api.js";
import { button, confirmed, copied, empty, h, toast } from "./dom.js";
import { bytes, count, moment, plural } from "./format.js";
import { Poll } from "./live.js";

const COLUMNS = ["Key", "Size", "Type", "Written", "Tags"];
const PAGE = 100;
const LARGEST = 64 << 20; // what is saved by the page, which has it in memory

export class ObjectsTab {
  constructor(view) {
    this.view = view;
    this.namespace = null;
    this.prefix = "";
    this.spaces = h("div", { class: "spaces", role: "group", "aria-label": "Namespaces" });
    this.field = h("input", { type: "search", placeholder: "begins with", "aria-label": "Keys begin with", on: { input: () => this.#find() } });
    this.body = h("tbody", {});
    this.more = button("More", () => this.#page(this.position), { class: "more" });
    this.table = h("div", {},
      h("table", { "aria-label": "Objects" },
        h("thead", {}, h("tr", {}, ...COLUMNS.map((text) => h("th", { scope: "col", class: text === "Size" ? "number" : null }, text)))),
        this.body));
    this.nothing = h("div", {});
    this.about = h("div", { class: "about-object" });
    this.element = h("div", {}, this.spaces, h("p", {}, this.field), this.nothing, this.table, this.more, this.about);
    this.poll = new Poll((signal) => this.#ask(signal), 5000);
  }

  close() {
    this.poll.stop();
    clearTimeout(this.finding);
  }

  async #ask(signal) {
    const told = await get(this.view.place("objects"), signal);
    const text = JSON.stringify(told.namespaces);
    if (text === this.told) return;
    this.told = text;
    const names = told.namespaces.map((space) => space.name);
    if (!names.includes(this.namespace)) this.namespace = names[0] ?? null;
    this.spaces.replaceChildren(...told.namespaces.map((space) => this.#space(space)));
    this.table.hidden = this.field.hidden = this.namespace === null;
    if (this.namespace === null) {
      this.more.hidden = true;
      this.nothing.replaceChildren(empty("No objects", "Handlers write them with self.storage.put(..), people with grape storage put."));
    } else {
      await this.#page("");
    }
  }

  #space({ name, storage }) {
    return button([name, storage ? h("span", { class: "muted" }, ` in ${storage}`) : null], () => {
      this.namespace = name;
      this.told = null;
      this.about.replaceChildren();
      this.poll.now();
    }, { "aria-pressed": String(name === this.namespace) });
  }

  #find() {
    clearTimeout(this.finding);
    this.finding = setTimeout(() => {
      this.prefix = this.field.value;
      this.#page("");
    }, 200);
  }

  async #page(position) {
    const namespace = this.namespace;
    const query = { prefix: this.prefix, limit: PAGE, position: position || null };
    let told;
    try {
      told = await get(place(this.view.name, `objects/${encodeURIComponent(namespace)}`, query));
    } catch (e) {
      this.nothing.replaceChildren(empty("They cannot be shown", e.message));
      return;
    }
    if (namespace !== this.namespace) return;
    const rows = told.objects.map((about) => this.#row(about));
    if (position) this.body.append(...rows);
    else this.body.replaceChildren(...rows);
    this.position = told.position;
    this.more.hidden = !told.position;
    this.nothing.replaceChildren(...(this.body.children.length ? [] : [empty("Nothing begins so", this.prefix)]));
  }

  #row(about) {
    return h("tr", {},
      h("td", {}, button(about.key, () => this.#show(about), { class: "link" })),
      h("td", { class: "number", "data-label": "Size" }, bytes(about.size)),
      h("td", { "data-label": "Type" }, about.content_type),
      h("td", { "data-label": "Written" }, moment(about.time / 1e6)),
      h("td", { "data-label": "Tags" }, about.tags.join(", ")));
  }

  #url(about) {
    const key = about.key.split("/").map(encodeURIComponent).join("/");
    return place(this.view.name, `objects/${encodeURIComponent(this.namespace)}/${key}`);
  }

  #show(about) {
    const facts = [
      ["key", about.key],
      ["size", `${count(about.size)} bytes`],
      ["version", about.version],
      ["checksum", about.checksum],
      ["type", about.content_type],
      ["written", moment(about.time / 1e6)],
      ["gone from", about.expires ? moment(about.expires / 1e6) : null],
      ["tags", about.tags.join(", ")],
      ...Object.entries(about.user ?? {}),
    ].filter(([, value]) => value);
    const command = `grape storage get ${this.namespace}/${about.key} --app ${this.view.name}`;
    this.about.replaceChildren(h("section", { class: "card", "aria-label": `Object ${about.key}` },
      h("h2", {}, about.key),
      h("dl", { class: "about" }, ...facts.flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])),
      h("p", { class: "actions" },
        about.size <= LARGEST ? button("Save", () => this.#save(about)) : button("Copy the command that gets it", () => copied(command)),
        this.view.mayEmit ? button("Remove", () => this.#remove(about), { class: "danger" }) : null)));
    this.about.scrollIntoView({ block: "nearest" });
    this.about.querySelector("button").focus({ preventScroll: true });
  }

  async #save(about) {
    const headers = token.get() ? { authorization: `Bearer ${token.get()}` } : {};
    const answer = await fetch(this.#url(about), { headers, cache: "no-store", credentials: "omit" }).catch(() => null);
    if (!answer?.ok) {
      toast("It could not be got", true);
      return;
    }
    const data = new Blob([await answer.arrayBuffer()], { type: "application/octet-stream" });
    const link = h("a", { href: URL.createObjectURL(data), download: about.key.split("/").pop() });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  async #remove(about) {
    if (!(await confirmed(`Remove ${about.key}?`, `${plural(about.size, "byte")}, written ${moment(about.time / 1e6)}. Nothing brings it back.`, "Remove", true))) return;
    const options = { method: "DELETE", headers: about.version ? { "if-match": `"${about.version}"` } : {} };
    const answer = await send(this.#url(about), options).catch((e) => ({ isOk: false, text: e.message }));
    toast(answer.isOk ? `${about.key} is removed` : answer.status === 412 ? "It was written anew meanwhile" : "It could not be removed", !answer.isOk);
    this.about.replaceChildren();
    await this.#page("");
  }
}
