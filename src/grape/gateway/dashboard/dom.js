// Elements are made here, and nowhere from text: what events bring is only ever text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** What is the same is not touched: a selection and a screen reader's place stay. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function attribute(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

export function button(label, act, attributes) {
  return h("button", { type: "button", ...attributes, on: { click: act } }, ...[label].flat());
}

/** Ask before something is done. Resolves to whether it is to be. */
export function confirmed(title, text, action, isDanger = false) {
  return new Promise((resolve) => {
    const yes = h("button", { value: "yes", class: isDanger ? "danger" : "primary" }, action);
    const dialog = h(
      "dialog",
      { "aria-labelledby": "asks" },
      h("form", { method: "dialog" },
        h("h2", { id: "asks" }, title),
        h("p", {}, text),
        h("div", { class: "actions" }, h("button", { value: "no", autofocus: true }, "Cancel"), yes)),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

let toasts = null;

/** A line that goes away by itself. */
export function toast(text, isBad = false) {
  if (toasts === null) {
    toasts = h("div", { class: "toasts", role: "status", "aria-live": "polite" });
    document.body.append(toasts);
  }
  const one = h("p", { class: isBad ? "toast bad" : "toast" }, text);
  toasts.append(one);
  setTimeout(() => one.remove(), isBad ? 9000 : 4000);
}

/** Into the clipboard, where the browser lets a page do that. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("This browser does not let the page copy: select it.", true);
  }
}

export function empty(title, text) {
  return h("div", { class: "empty" }, h("p", { class: "big" }, title), text ? h("p", {}, text) : null);
}
