// Looking on at an output: what comes, as it comes, over everything that ends in between.

import { follow } from "./api.js";

const AGAIN = 1000;
const KEPT = 1000; // of one piece

/** What a server-sent event says. */
function frameOf(text) {
  const found = new Map(text.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]));
  return { event: found.get("event") ?? "message", data: found.get("data") ?? "", id: found.get("id") ?? null };
}

export class Tail {
  #isOver = false;
  #abort = null;
  #wake = null;
  #last = "";

  /**
   * path: of an output's tail; begin: its query, for the first time. heard: called with the newest texts, and how many
   * there were; said: called with how it goes.
   */
  constructor(path, begin, heard, said) {
    this.path = path;
    this.begin = begin;
    this.heard = heard;
    this.said = said;
    this.look = () => this.#look();
    document.addEventListener("visibilitychange", this.look);
    this.#run();
  }

  stop() {
    this.#isOver = true;
    document.removeEventListener("visibilitychange", this.look);
    this.#look();
  }

  /** Nobody is asked anything while nobody looks. */
  #look() {
    if (this.#isOver || document.visibilityState !== "visible") this.#abort?.abort();
    this.#wake?.();
  }

  async #run() {
    while (!this.#isOver) {
      while (!this.#isOver && document.visibilityState !== "visible") await new Promise((resolve) => (this.#wake = resolve));
      if (this.#isOver) return;
      this.#abort = new AbortController();
      try {
        await this.#follow(this.#abort.signal);
        this.said("again", "");
      } catch (e) {
        if (this.#isOver) return;
        if (e.name !== "AbortError") this.said("bad", e.message);
        if (e.status >= 400 && e.status < 500) return; // asked once more it would be the same
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN));
    }
  }

  async #follow(signal) {
    const headers = { accept: "text/event-stream", ...(this.#last ? { "last-event-id": this.#last } : {}) };
    const reader = await follow(`${this.path}${this.#last ? "" : this.begin}`, headers, signal);
    this.said("live", "");
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      const texts = [];
      for (const part of parts) {
        if (part.startsWith(":")) continue;
        const frame = frameOf(part);
        if (frame.id !== null) this.#last = frame.id;
        if (frame.event === "event") texts.push(frame.data);
        else if (frame.event === "error") throw new Error(JSON.parse(frame.data).detail);
      }
      if (texts.length) this.heard(texts.slice(-KEPT), texts.length);
    }
  }
}
