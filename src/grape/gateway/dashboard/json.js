// JSON as text: laid out and taken apart without being read, so that no digit of a number is lost.

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/gs;

const tokens = (text) => text.match(TOKEN) ?? [];
const opens = (token) => token === "{" || token === "[";
const closes = (token) => token === "}" || token === "]";

/** A line for each member, as people read it. */
export function indented(text) {
  const out = [];
  let depth = 0;
  let before = "";
  for (const token of tokens(text)) {
    if (closes(token)) depth -= 1;
    const isFirst = opens(before) && !closes(token);
    const isLast = closes(token) && !opens(before);
    if (isFirst || isLast || before === ",") out.push("\n", "  ".repeat(Math.max(0, depth)));
    out.push(token === ":" ? ": " : token);
    if (opens(token)) depth += 1;
    before = token;
  }
  return out.join("");
}

export const compact = (text) => tokens(text).join("");

/** The members of an object: the text of each value, by name. */
export function members(text) {
  const found = new Map();
  let depth = 0;
  let name = null;
  let part = [];
  const flush = () => {
    if (name !== null) found.set(name, part.join(""));
    name = null;
    part = [];
  };
  for (const token of tokens(text)) {
    if (closes(token)) depth -= 1;
    if (depth === 0 && closes(token)) flush();
    else if (depth === 1 && token === ",") flush();
    else if (depth === 1 && token === ":" && name === null) {
      name = JSON.parse(part.join(""));
      part = [];
    } else if (depth > 0) part.push(token);
    if (opens(token)) depth += 1;
  }
  return found;
}

/** Whether it is JSON; else why not. */
export function problemOf(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (e) {
    return e.message;
  }
}

/** What would move a cursor or turn a line around, where it is shown or pasted: written as JSON writes it. */
export const harmless = (text) =>
  text.replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
