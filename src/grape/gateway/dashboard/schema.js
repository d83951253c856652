// A JSON Schema as people read it, and a payload that would fit it. Whatever it says is text.

import { h } from "./dom.js";
import { plural } from "./format.js";

const DEEPEST = 6; // levels of a payload that is made up
const LARGEST = 300; // values in it
const MOST = 12; // values of an enum that are shown at once

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const own = (value, name) => (isObject(value) && Object.hasOwn(value, name) ? value[name] : undefined);
const list = (value) => (Array.isArray(value) ? value : []);
const said = (value) => {
  const text = JSON.stringify(value) ?? "";
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
};

const FORMATS = {
  "date-time": "2026-03-29T06:00:00Z",
  date: "2026-03-29",
  time: "06:00:00",
  duration: "PT1M",
  uuid: "123e4567-e89b-12d3-a456-426614174000",
  email: "ann@example.org",
  uri: "urn:example:1",
  decimal: "1.00",
};

export class Schemas {
  /** document: in which a $ref is looked up. */
  #solid = new WeakMap(); // so that what holds itself is known again

  constructor(document) {
    this.document = document ?? {};
  }

  #at(ref) {
    if (typeof ref !== "string" || !ref.startsWith("#")) return undefined;
    let found = this.document;
    for (const part of ref.slice(1).split("/").slice(1)) {
      let name = part;
      try {
        name = decodeURIComponent(part);
      } catch {
        // it is meant as it is
      }
      name = name.replaceAll("~1", "/").replaceAll("~0", "~");
      if (Array.isArray(found)) found = found[Number(name)];
      else found = own(found, name);
    }
    return found;
  }

  /** What it says once every $ref is followed, and by which name. */
  solid(schema) {
    if (!isObject(schema)) return { name: "", schema };
    if (!this.#solid.has(schema)) this.#solid.set(schema, this.#followed(schema));
    return this.#solid.get(schema);
  }

  #followed(schema) {
    let found = schema;
    let name = "";
    for (let i = 0; i < 20 && typeof own(found, "$ref") === "string"; i++) {
      const { $ref, ...beside } = found;
      name = $ref.slice($ref.lastIndexOf("/") + 1);
      const target = this.#at($ref);
      if (target === undefined) return { name, schema: true };
      found = isObject(target) && Object.keys(beside).length ? { ...target, ...beside } : target;
    }
    return { name, schema: typeof own(found, "$ref") === "string" ? true : found };
  }

  /** Whether it lets anything be. */
  isAny(schema) {
    const found = this.solid(schema).schema;
    return !isObject(found) ? found !== false : !Object.keys(found).some((key) => !["description", "title", "examples", "example", "default", "$comment"].includes(key));
  }

  // ---------------------------------------------------------------- in words

  text(schema, depth = 0) {
    const { name, schema: found } = this.solid(schema);
    if (found === false) return "nothing";
    if (!isObject(found)) return name || "any";
    if (name) return name;
    return this.#kind(found, depth);
  }

  #kind(found, depth) {
    if (depth > 4) return "…";
    if (Object.hasOwn(found, "const")) return said(found.const);
    if (Array.isArray(found.enum)) {
      if (!found.enum.length) return "nothing";
      const more = found.enum.length - MOST;
      return found.enum.slice(0, MOST).map(said).join(" | ") + (more > 0 ? ` | … ${more} more` : "");
    }
    for (const [key, between] of [["anyOf", " | "], ["oneOf", " | "], ["allOf", " & "]]) {
      if (list(found[key]).length) return [...new Set(found[key].map((one) => this.text(one, depth + 1)))].join(between);
    }
    const types = Array.isArray(found.type) ? found.type : found.type ? [found.type] : this.#guessed(found);
    return types.length ? types.map((type) => this.#typed(String(type), found, depth)).join(" | ") : "any";
  }

  #guessed(found) {
    if (isObject(found.properties) || isObject(found.additionalProperties)) return ["object"];
    return Object.hasOwn(found, "items") || Array.isArray(found.prefixItems) ? ["array"] : [];
  }

  #typed(type, found, depth) {
    if (type === "array") {
      const first = list(found.prefixItems);
      if (first.length) return `[${first.map((one) => this.text(one, depth + 1)).join(", ")}${isObject(found.items) ? ", …" : ""}]`;
      return Object.hasOwn(found, "items") && !this.isAny(found.items) ? `array of ${this.text(found.items, depth + 1)}` : "array";
    }
    if (type === "object") {
      const others = own(found, "additionalProperties");
      return isObject(others) && !isObject(found.properties) && !this.isAny(others) ? `object of ${this.text(others, depth + 1)}` : String(found.title ?? "object");
    }
    const how = found.format ?? (found.contentEncoding ? `bytes as ${found.contentEncoding}` : "");
    return how ? `${type} (${how})` : type;
  }

  /** What else has to be so. */
  #limits(found) {
    const out = [];
    const has = (name) => typeof found[name] === "number";
    if (has("minimum")) out.push(`≥ ${found.minimum}`);
    if (has("exclusiveMinimum")) out.push(`> ${found.exclusiveMinimum}`);
    if (has("maximum")) out.push(`≤ ${found.maximum}`);
    if (has("exclusiveMaximum")) out.push(`< ${found.exclusiveMaximum}`);
    if (has("multipleOf")) out.push(`a multiple of ${found.multipleOf}`);
    for (const [what, one] of [["Length", "character"], ["Items", "item"], ["Properties", "member"]]) {
      const [least, most] = [found[`min${what}`], found[`max${what}`]];
      if (typeof least === "number" && least > 0 && typeof most === "number") out.push(least === most ? plural(least, one) : `${least} to ${plural(most, one)}`);
      else if (typeof least === "number" && least > 0) out.push(`at least ${plural(least, one)}`);
      else if (typeof most === "number") out.push(`at most ${plural(most, one)}`);
    }
    if (found.uniqueItems === true) out.push("each once");
    if (typeof found.pattern === "string") out.push(`as ${found.pattern}`);
    if (Object.hasOwn(found, "default")) out.push(`else ${said(found.default)}`);
    return out;
  }

  // ---------------------------------------------------------------- as elements

  view(schema) {
    const { name, schema: found } = this.solid(schema);
    if (this.isAny(schema)) {
      return h("div", { class: "schema" }, h("p", { class: "any" }, h("span", { class: "type" }, "any"), " JSON value: the app does not say more."), this.#about(found));
    }
    const inner = this.#inner(found);
    const title = name || own(found, "title");
    return h("div", { class: "schema" },
      title || !inner ? h("p", {}, h("span", { class: "type" }, title ? String(title) : this.#kind(isObject(found) ? found : {}, 0)), ...this.#notes(found)) : null,
      this.#about(found),
      inner?.());
  }

  #about(found) {
    const text = own(found, "description");
    return typeof text === "string" && text ? h("p", { class: "muted small" }, text) : null;
  }

  #notes(found) {
    return isObject(found) ? this.#limits(found).map((limit) => h("span", { class: "limit" }, limit)) : [];
  }

  /** What makes the elements of what is in it; null: there is nothing more to say. Made when somebody looks, as a schema
      may hold itself. seen: those that are being looked at. */
  #inner(found, seen = new Set()) {
    if (!isObject(found) || seen.has(found)) return null;
    seen.add(found);
    const hasMore = (one) => this.#inner(this.solid(one).schema, seen) !== null;
    const properties = own(found, "properties");
    const others = own(found, "additionalProperties");
    for (const key of ["anyOf", "oneOf", "allOf"]) {
      const options = list(found[key]);
      if (options.some(hasMore)) {
        const between = key === "allOf" ? "all of" : "one of";
        return () => h("div", {}, h("p", { class: "muted small" }, between), h("ul", { class: "fields plain" }, ...options.map((one) => this.#row("", one, false))));
      }
    }
    if (isObject(properties) && Object.keys(properties).length) {
      const needed = new Set(list(found.required));
      return () =>
        h("ul", { class: "fields plain" },
          ...Object.keys(properties).map((name) => this.#row(name, properties[name], needed.has(name))),
          isObject(others) && !this.isAny(others) ? this.#row("…", others, false, "any other name") : null);
    }
    if (isObject(others) && hasMore(others)) return () => h("ul", { class: "fields plain" }, this.#row("…", others, false, "any name"));
    const first = list(found.prefixItems);
    if (first.some(hasMore)) return () => h("ul", { class: "fields plain" }, ...first.map((one, i) => this.#row(String(i), one, true)));
    if (isObject(found.items)) return this.#inner(this.solid(found.items).schema, seen);
    return null;
  }

  #row(name, schema, isNeeded, note = "") {
    const { schema: found } = this.solid(schema);
    const inner = this.#inner(found);
    const head = [
      name ? h("code", { class: "name" }, name) : null,
      h("span", { class: "type" }, this.text(schema)),
      isNeeded ? h("span", { class: "needed" }, "required") : null,
      note ? h("span", { class: "limit" }, note) : null,
      ...this.#notes(found),
    ];
    if (inner === null) return h("li", {}, h("div", { class: "field-head" }, ...head), this.#about(found));
    const body = h("div", { class: "field-body" });
    const details = h("details", {}, h("summary", { class: "field-head" }, ...head), body);
    details.addEventListener("toggle", () => {
      if (details.open && !body.childElementCount) body.append(inner());
    });
    return h("li", {}, details, this.#about(found));
  }

  // ---------------------------------------------------------------- a payload

  /** One that fits it, as far as that can be made up. isShort: with what is required alone. */
  sample(schema, isShort = false) {
    this.left = LARGEST;
    this.isShort = isShort;
    return this.#sample(schema, 0, []);
  }

  #sample(schema, depth, way) {
    this.left -= 1;
    const { schema: found } = this.solid(schema);
    if (!isObject(found)) return depth ? null : {};
    if (Object.hasOwn(found, "const")) return found.const;
    for (const key of ["example", "default"]) if (Object.hasOwn(found, key)) return found[key];
    if (list(found.examples).length) return found.examples[0];
    if (list(found.enum).length) return found.enum[0];
    if (depth > DEEPEST || this.left < 0 || way.includes(found)) return null;
    const on = [...way, found];
    for (const key of ["anyOf", "oneOf"]) {
      const options = list(found[key]);
      if (options.length) return this.#sample(options.find((one) => this.#kindOf(one) !== "null" && !on.includes(this.solid(one).schema)) ?? options[0], depth, on);
    }
    if (list(found.allOf).length) {
      const parts = found.allOf.map((one) => this.#sample(one, depth, on));
      return parts.every(isObject) ? Object.assign(Object.create(null), ...parts) : parts[0];
    }
    return this.#made(this.#kindOf(found), found, depth, on);
  }

  #kindOf(schema) {
    const { schema: found } = this.solid(schema);
    if (!isObject(found)) return "";
    const types = Array.isArray(found.type) ? found.type : found.type ? [found.type] : this.#guessed(found);
    return types.find((type) => type !== "null") ?? types[0] ?? "";
  }

  #made(type, found, depth, on) {
    if (type === "object") {
      const made = Object.create(null); // a name may be any, also __proto__
      const properties = own(found, "properties") ?? {};
      const needed = new Set(list(found.required));
      for (const name of Object.keys(properties)) {
        const isAgain = on.includes(this.solid(properties[name]).schema);
        if ((!this.isShort && !isAgain && this.left > 0) || needed.has(name)) made[name] = this.#sample(properties[name], depth + 1, on);
      }
      return made;
    }
    if (type === "array") {
      const first = list(found.prefixItems);
      if (first.length) return first.map((one) => this.#sample(one, depth + 1, on));
      if (found.maxItems === 0 || on.includes(this.solid(found.items).schema)) return [];
      const one = this.#sample(found.items ?? {}, depth + 1, on);
      return Array.from({ length: Math.min(5, Math.max(1, Number(found.minItems) || 1)) }, () => one);
    }
    if (type === "string") {
      const text = Object.hasOwn(FORMATS, found.format) ? FORMATS[found.format] : found.contentEncoding === "base64" ? "AA==" : "text";
      const [least, most] = [Number(found.minLength) || 0, Number(found.maxLength ?? text.length)];
      return text.padEnd(Math.min(least, 1000), "x").slice(0, Math.max(least, most));
    }
    if (type === "integer" || type === "number") return this.#number(type, found);
    if (type === "boolean") return true;
    if (type === "null") return null;
    return depth ? null : {};
  }

  #number(type, found) {
    const step = type === "integer" ? 1 : 0.5;
    const least = found.minimum ?? (typeof found.exclusiveMinimum === "number" ? found.exclusiveMinimum + step : undefined);
    const most = found.maximum ?? (typeof found.exclusiveMaximum === "number" ? found.exclusiveMaximum - step : undefined);
    let value = 1;
    if (typeof least === "number" && value < least) value = least;
    if (typeof most === "number" && value > most) value = most;
    if (typeof found.multipleOf === "number" && found.multipleOf > 0) value = Math.ceil(value / found.multipleOf) * found.multipleOf;
    return type === "integer" ? Math.ceil(value) : value;
  }
}
