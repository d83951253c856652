// Asking the server. A token, if it wants one, is kept for this tab alone.

const TOKEN = "grape-token";

export class Refused extends Error {
  constructor(status, code, text) {
    super(text);
    this.status = status;
    this.code = code;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

async function fetched(path, options) {
  const headers = new Headers(options.headers);
  if (token.get()) headers.set("authorization", `Bearer ${token.get()}`);
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Refused(0, "offline", "the server cannot be reached");
  }
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function refusedBy(answer, value) {
  const refused = new Refused(answer.status, value?.code ?? "http", value?.detail ?? `HTTP ${answer.status}`);
  if (refused.status === 401) dispatchEvent(new CustomEvent("grape-token", { detail: refused.message }));
  return refused;
}

async function ask(path, options = {}) {
  const answer = await fetched(path, options);
  const value = read(await answer.text());
  if (!answer.ok || value === null) throw refusedBy(answer, value);
  return value;
}

export function place(app, what = "", query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const search = new URLSearchParams(given).toString();
  return `/apps/${encodeURIComponent(app)}${what && `/${what}`}${search && `?${search}`}`;
}

export const get = (path, signal) => ask(path, { signal });

export const change = (path, value = {}) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

/** The answer as it is, whatever it says: status, text, milliseconds. */
export async function send(path, options) {
  const begun = performance.now();
  const answer = await fetched(path, options);
  const text = await answer.text();
  if (answer.status === 401) refusedBy(answer, read(text));
  return { status: answer.status, isOk: answer.ok, text, milliseconds: performance.now() - begun };
}

/** An answer that comes piece by piece: its reader. */
export async function follow(path, headers, signal) {
  const answer = await fetched(path, { headers, signal });
  if (!answer.ok) throw refusedBy(answer, read(await answer.text()));
  return answer.body.pipeThrough(new TextDecoderStream()).getReader();
}

/** Whether there is such a page. */
export async function isThere(path) {
  const answer = await fetched(path, { method: "HEAD" });
  return answer.ok;
}
