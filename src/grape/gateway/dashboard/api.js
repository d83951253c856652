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

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Refused(0, "offline", "the server cannot be reached");
  }
  const text = await answer.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // said below
  }
  if (!answer.ok || value === null) {
    const refused = new Refused(answer.status, value?.code ?? "http", value?.detail ?? `HTTP ${answer.status}`);
    if (refused.status === 401) dispatchEvent(new CustomEvent("grape-token", { detail: refused.message }));
    throw refused;
  }
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
