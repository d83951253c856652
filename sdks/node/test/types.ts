// Compiled by `npm run types`, never run: that the types say what the package does.
import { BadValue, CallFailed, Event, HandlerError, NoAnswer, Worker, log, logs } from "..";

const worker = new Worker();

interface Order {
  id: number;
}

worker.slot<Order, { count?: number }>("order", { node: "Orders", states: ["count", { name: "seen", ttl: 60 }] }, (event) => {
  const id: number = event.data.id;
  event.state.count = (event.state.count ?? 0) + id;
  delete event.state.count;
  event.emit("total", { id }, { key: null, delay: 1.5 });
  event.emit("total", id, { delay: 60, timer: "over" });
  event.cancelTimer("over");
  try {
    const price: number = event.call("price", id, { key: null, timeout: 5 });
    event.emit("total", price);
  } catch (error) {
    if (error instanceof CallFailed) event.emit("total", [error.code, error.text, error.node]);
    else if (!(error instanceof NoAnswer)) throw error;
  }
  event.emitMany("total", { keys: ["a"], data: [1] });
  event.reply({ id }, { final: false });
  if (logs("debug")) log("debug", `order ${id}`, { id, late: false });
});

worker.slot("store", { node: "Store" }, (event) => {
  event.storage.put("a/b", "text", { contentType: "text/plain", tags: ["x"], user: { by: "me" }, time: new Date(), ttl: 60 });
  const size: number | undefined = event.storage.stat("a/b")?.size;
  const bytes: Uint8Array | null = event.storage.namespace("photos").get("c", 0, size);
  for (const { key, tags } of event.storage.list("a/", { tags: ["x"] })) event.emit("total", [key, tags, bytes]);
  event.storage.remove("a/b");
});

worker.slot("bring", { node: "Bring" }, async (event: Event) => {
  const { promises } = event.storage;
  const chunks = await promises.chunks("a/b");
  if (chunks !== null) await promises.put("c", chunks);
  for await (const about of promises.list()) event.emit("total", about.expires?.getTime());
});

worker.slot("fetch", { node: "Fetch", concurrency: 8, rate: "100/s", burst: 20 }, async (event: Event) => {
  event.signal?.throwIfAborted();
  if (event.attempt > 1) throw new HandlerError("again", "mine");
});

worker.setup(async () => worker.config.url).teardown(() => undefined).run();

export const kind: string = new BadValue("x").kind;
