// What is done with an app as a whole: asked about where it matters, then told.

import { change } from "./api.js";
import { confirmed, toast } from "./dom.js";

const VERBS = {
  pause: { label: "Pause", done: "paused", text: "Its workers get nothing more; what comes is taken in and waits, up to the limits of its pools." },
  resume: { label: "Resume", done: "resumed" },
  start: { label: "Start", done: "started" },
  restart: { label: "Restart", done: "restarted", text: "Events wait meanwhile; none is refused." },
  stop: { label: "Stop", done: "stopped", isDanger: true, text: "What runs is committed, the rest stays. It is refused events until it is started again." },
  rollback: { label: "Roll back", done: "rolled back" },
  upgrade: { label: "Change", done: "changed" },
};

/** about: title and text of a question of its own; query; done: what it is then. Resolves to whether it was. */
export async function order(view, verb, about = {}) {
  const { label, text, isDanger } = VERBS[verb];
  const asks = about.text ?? text;
  if (asks && !(await confirmed(about.title ?? `${label} ${view.name}?`, asks, label, isDanger))) return false;
  view.element.inert = true;
  try {
    await change(view.place(verb, about.query));
    toast(`${view.name} is ${about.done ?? VERBS[verb].done}`);
    return true;
  } catch (e) {
    toast(e.message, true);
    return false;
  } finally {
    view.element.inert = false;
    view.poll.now();
  }
}
