/** The nodes of a Grape app in JavaScript. */

/** A value that can travel: as data of an event, as a reply, or as state. */
export type Value =
  | null
  | undefined
  | boolean
  | number
  | bigint
  | string
  | Date
  | Uint8Array
  | ArrayBuffer
  | Ext
  | Value[]
  | Set<Value>
  | Map<Value, Value>
  | { toJSON(): Value }
  | { [name: string]: Value };

export interface EmitOptions {
  /** The key of the emitted event; null: it has none. Without it the event inherits the key of its cause. */
  key?: string | null;
  /** Seconds until it is emitted. */
  delay?: number;
  /** With a delay: a name, one of this node and key. It takes the place of the timer that was set under it before. */
  timer?: string;
}

export interface CallOptions {
  /** The key of the request; null: it has none. Without it: that of the event. */
  key?: string | null;
  /** Seconds until it is over without an answer (30). */
  timeout?: number;
}

export interface PutOptions {
  /** A media type ("application/octet-stream"). */
  contentType?: string;
  tags?: Iterable<string>;
  /** Metadata of your own. */
  user?: Record<string, string>;
  /** Without it that of now. */
  time?: Date;
  /** Seconds after which it is gone. */
  ttl?: number;
}

/** What is known of an object beside its bytes. */
export interface About {
  key: string;
  /** Bytes. */
  size: number;
  /** Another one after every write; "0": it is not committed. */
  version: string;
  /** "sha256:" and hexadecimal digits. */
  checksum: string;
  time: Date;
  contentType: string;
  tags: string[];
  user: Record<string, string>;
  expires: Date | null;
}

/** Bytes, text (as UTF-8), a file (a URL that begins with "file:"), or chunks. */
export type ObjectData = string | Uint8Array | ArrayBuffer | URL | Iterable<Uint8Array>;

/**
 * The objects of a namespace. What is written is committed with what else the event does, or not at all; later events of its
 * key see it at once. These methods wait for the engine, and keep everything else waiting: async handlers use `promises`.
 */
export interface Storage {
  /** Write an object, whole. Over 64 KiB go to a file at once, chunk by chunk. */
  put(key: string, data: ObjectData, options?: PutOptions): void;
  /** Its bytes, from `start` up to `end` (not included); null: there is none. */
  get(key: string, start?: number, end?: number): Buffer | null;
  /** The same, as chunks of up to 1 MiB. */
  chunks(key: string, start?: number, end?: number): Iterable<Buffer> | null;
  stat(key: string): About | null;
  /** Those that are committed, in the order of keys. */
  list(prefix?: string, options?: { tags?: Iterable<string> }): Iterable<About>;
  remove(key: string): void;
  /** Those of another namespace, if grape.toml grants it. */
  namespace(name: string): Storage;
  readonly promises: AsyncStorage;
}

/** The same for async handlers. */
export interface AsyncStorage {
  put(key: string, data: ObjectData | AsyncIterable<Uint8Array>, options?: PutOptions): Promise<void>;
  get(key: string, start?: number, end?: number): Promise<Buffer | null>;
  chunks(key: string, start?: number, end?: number): Promise<AsyncIterable<Buffer> | null>;
  stat(key: string): Promise<About | null>;
  list(prefix?: string, options?: { tags?: Iterable<string> }): AsyncIterable<About>;
  remove(key: string): Promise<void>;
  namespace(name: string): AsyncStorage;
}

/** One state value per (node, key). Reading gives undefined where there is none; assigning undefined deletes. */
export type State = Record<string, any>;

/** An event as a handler gets it. */
export interface Event<Data = any, S extends object = State> {
  readonly name: string;
  readonly key: string | null;
  readonly data: Data;
  /** The state of this node and key. What is done to it counts if the handler succeeds. */
  readonly state: S;
  /** The same on every attempt: the idempotency key for effects outside of Grape. */
  readonly id: string;
  /** 1 for the first attempt. */
  readonly attempt: number;
  /** When the event was made. */
  readonly created: Date;
  /** How many emits lie between the event and the outside. */
  readonly hops: number;
  /** Async handlers: aborts when the slot's timeout is over. Undefined in synchronous ones. */
  readonly signal: AbortSignal | undefined;
  emit(name: string, data?: unknown, options?: EmitOptions): void;
  /** One emit for each key, each value, or both. */
  emitMany(name: string, columns: { keys?: readonly (string | null)[]; data?: readonly unknown[] }): void;
  /** Answer the call that this event comes from, if any. `final: false`: more parts follow. */
  reply(data?: unknown, options?: { final?: boolean }): void;
  /** Take back the timer of this name, if it is not due yet. */
  cancelTimer(name: string): void;
  /**
   * Ask another node, and get its reply. The handler is left here (by a `Suspended`, which has to be let through), and
   * runs from its beginning when the answer is there; so up to its last call it has to do the same every time.
   *
   * @throws CallFailed, NoAnswer
   */
  call(name: string, data?: unknown, options?: CallOptions): any;
  /** The objects of the app's own namespace. */
  readonly storage: Storage;
  /** The handler is alive: its timeout begins anew. */
  progress(): void;
}

export type Handler<Data = any, S extends object = State> = (event: Event<Data, S>) => unknown;

export interface SlotOptions {
  /** The node that listens; without it the handler's own name. Several slots can be of one node. */
  node?: string;
  /** Names of the node's states, or `{ name, ttl }` with ttl in seconds. */
  states?: readonly (string | { name: string; ttl?: number })[];
  /** Names that the handler emits, for checks before the start and for the picture of the app. */
  emits?: readonly string[];
  /** Attempts after the first one (3). */
  retries?: number;
  /** Seconds before the first retry (1), doubling. */
  backoff?: number;
  /** The longest time between two attempts (60 seconds). */
  backoffMax?: number;
  /** Seconds that a handler may take (60); 0: any. */
  timeout?: number;
  /** What becomes of an event that has failed at every attempt ("dead"). */
  onFail?: "dead" | "stop";
  /** Whether later events of a key wait for a failed one (true). */
  ordered?: boolean;
  /** What another node of this file emits to it runs at once, if it names the event in its `emits` (true). */
  chain?: boolean;
  /** A client's event runs before it is accepted, and is answered sooner; every slot of the event has to say so (false). */
  eager?: boolean;
  /** Events that its handler gets at most, over all workers of the app: "100/s", "20/min", "500/h", "10/day", or a number a second. */
  rate?: string | number;
  /** Events of a rate that it may get at once, after a pause (1). */
  burst?: number;
  /** Async nodes: how many of its events run at once (100). */
  concurrency?: number;
  /** Whether the handler returns a promise. Without it: whether it is an `async function`. */
  async?: boolean;
}

export class Worker {
  constructor();
  /** The app's configuration. */
  readonly config: any;
  /** Let `handler` listen to `event`. */
  slot<Data = any, S extends object = State>(event: string, options: SlotOptions, handler: Handler<Data, S>): this;
  slot<Data = any, S extends object = State>(event: string, handler: Handler<Data, S>): this;
  /** Call `hook` before the first event. */
  setup(hook: () => unknown): this;
  /** Call `hook` after the last event. */
  teardown(hook: () => unknown): this;
  /** Serve the engine. */
  run(): void;
}

export type Level = "debug" | "info" | "warning" | "error" | "critical";

/**
 * A line for the log, as said by the node that runs, with the ids of its event and of the trace of that. `fields`: plain
 * values beside the text. What is below the level that an operator has set is not made.
 */
export function log(level: Level, text: unknown, fields?: Record<string, unknown>): void;
/** Whether a record of this level is wanted: where it costs something to make its text. */
export function logs(level: Level): boolean;

/** A msgpack extension that JavaScript has no type for. */
export class Ext {
  constructor(type: number, data: Uint8Array);
  type: number;
  data: Uint8Array;
}

/** Every error of this package. `kind` is stable: what a failed event is filed under. */
export class GrapeError extends Error {
  readonly kind: string;
}
export class TopologyError extends GrapeError {}
export class UsageError extends GrapeError {}
/** The base of what fails a single event. */
export class HandlerError extends GrapeError {
  constructor(message: string, kind?: string);
}
export class UnknownEvent extends HandlerError {}
export class NoKey extends HandlerError {}
export class BadKey extends HandlerError {}
export class BadValue extends HandlerError {}
export class BadArgument extends HandlerError {}
export class BadState extends HandlerError {}
export class BadPayload extends HandlerError {}
export class TooLarge extends HandlerError {}
export class EventOver extends HandlerError {}
export class Timeout extends HandlerError {}
/** Who should have answered a call failed for good. */
export class CallFailed extends GrapeError {
  /** The kind of that failure. */
  readonly code: string;
  readonly text: string;
  /** Whose it is. */
  readonly node: string;
}
/** Nobody answered a call in time. */
export class NoAnswer extends GrapeError {}
/** What a handler is left by at a call. No error: what catches it has to throw it again. */
export class Suspended extends Error {
  readonly event: string;
}
