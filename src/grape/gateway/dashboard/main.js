// The page: which view is shown, and what is common to all.

import { AppView } from "./app.js";
import { ListView } from "./list.js";
import { token } from "./api.js";
import { attribute, h, say } from "./dom.js";

const main = document.getElementById("main");
const where = document.getElementById("where");
const pulse = document.getElementById("pulse");
const forget = document.getElementById("forget");
let view = null;

/** What a hash says: #/APP/TAB?QUERY. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [app = "", tab = ""] = path.split("/").map(decodeURIComponent);
  return { app, tab, query: new URLSearchParams(query) };
}

export const page = {
  /** Whether the server answers. */
  heard(isWell, text = "") {
    say(pulse, isWell ? "live" : text || "no answer");
    attribute(pulse, "data-bad", !isWell);
  },
};

function show() {
  const asked = route();
  forget.hidden = !token.get();
  if (view instanceof AppView && view.name === asked.app) {
    view.show(asked.tab, asked.query);
    return;
  }
  view?.close();
  view = asked.app ? new AppView(asked.app, page) : new ListView(page);
  document.title = asked.app ? `${asked.app} · Grape` : "Grape";
  where.replaceChildren(...(asked.app ? [h("span", { class: "slash", "aria-hidden": "true" }, "/"), h("strong", {}, asked.app)] : []));
  main.replaceChildren(view.element);
  if (asked.app) view.show(asked.tab, asked.query);
}

function again() {
  view?.close();
  view = null;
  show();
}

addEventListener("hashchange", show);
addEventListener("grape-token", (e) => {
  if (document.querySelector("dialog.token")) return;
  const field = h("input", { type: "password", name: "token", autocomplete: "off", spellcheck: "false", required: true, "aria-label": "Token", placeholder: "grape_…" });
  const dialog = h(
    "dialog",
    { class: "token", "aria-labelledby": "who" },
    h("form", { method: "dialog" },
      h("h2", { id: "who" }, "Who is asking?"),
      h("p", {}, token.get() ? e.detail : "This server wants a token, such as grape token create makes. It is kept for this tab alone."),
      field,
      h("div", { class: "actions" }, h("button", { class: "primary", value: "yes" }, "Go on"))),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (field.value.trim()) {
      token.set(field.value.trim());
      again();
    }
  });
  document.body.append(dialog);
  dialog.showModal();
});
forget.addEventListener("click", () => {
  token.set("");
  again();
});
document.querySelector(".skip").addEventListener("click", (e) => {
  e.preventDefault();
  main.focus();
});
show();
