"use strict";

const { didYouMean } = require("./similar");

/** Events of other apps whose number is counted in what is emitted; more are sent, and not counted. */
const MAX_FOREIGN = 256;
const MAX_NAME_BYTES = 255;

/** Where every name leads, worked out once from the topology of the whole app. */

/** A log that takes a name. Runs of one `order` keep their order among each other; only names of a `group` share one. */
class Target {
  /** `only`: these nodes alone are meant; null: all that listen. */
  constructor(log, logId, order, group, only = null) {
    this.log = log;
    this.logId = logId;
    this.order = order;
    this.group = only === null ? group : `${group}\0\0${only.join("\0")}`;
    this.only = only;
  }

  /** The same log, for these of its nodes. */
  for(only) {
    return new Target(this.log, this.logId, this.order, this.group, only);
  }
}

/** Where one name leads. `isDropped`: an output that nobody takes, whose events are only counted; `isForeign`: to another app. */
class Route {
  constructor(id, name, isOutput, isDropped, targets, isForeign = false) {
    this.id = id;
    this.name = name;
    this.isOutput = isOutput;
    this.isDropped = isDropped;
    this.targets = targets;
    this.isForeign = isForeign;
  }
}

class Routing {
  /**
   * `topology`: as the engine tells it; `pool`: this worker's; `taken`: outputs that somebody takes; `peers`: other apps,
   * with the events that they listen to (null: not known).
   */
  constructor(topology, pool, taken, peers = {}) {
    this.app = topology.name;
    this.pool = pool;
    /** Pairs (emitting node, target) that run at once, as `pairOf` names them. */
    this.chained = chainedPairs(topology);
    /** name -> Route */
    this.routes = new Map();
    /** event -> names of the nodes of this pool that listen to it */
    this.here = new Map();
    const pools = listenersOf(topology);
    const logs = new Map();
    const orders = new Orders();
    for (const [name, events] of pools) for (const nodes of events.values()) orders.add(name, nodes);
    const idOf = (log) => logs.get(log) ?? logs.set(log, logs.size).get(log);
    for (const [log, events] of pools) {
      for (const [event, nodes] of events) {
        const target = new Target(log, idOf(log), orders.of(log, nodes[0]), `${log}\0${nodes.join("\0")}`);
        const route = this.routes.get(event);
        if (route) route.targets.push(target);
        else this.routes.set(event, new Route(this.routes.size, event, false, false, [target]));
        if (log === pool) this.here.set(event, nodes);
      }
    }
    for (const name of topology.outputs ?? []) {
      const log = `>${name}`;
      const target = new Target(log, idOf(log), orders.one(), log);
      this.routes.set(name, new Route(this.routes.size, name, true, !taken.has(name), [target]));
    }
    /** Of all routes, by id. */
    this.names = [...this.routes.keys()];
    this.peers = peers;
    this.#orders = orders;
    this.#idOf = idOf;
  }

  #orders;
  #idOf;
  /** app -> target of all that goes there, which stays in its order */
  #apps = new Map();
  /** Names of events of other apps that were used -> Route */
  #foreign = new Map();

  /** The other apps are these from now on. */
  changePeers(peers) {
    this.peers = peers;
  }

  /** Why nothing can be emitted to `name`, which has an "@"; "" if it can be. */
  problemOf(name) {
    const at = name.indexOf("@");
    const [app, event] = [name.slice(0, at), name.slice(at + 1)];
    if (app === this.app) return `an event of the own app is written without it: '${event}'`;
    if (!Object.hasOwn(this.peers, app)) {
      return `no app '${app}' is installed here (no-such-app)${didYouMean(app, Object.keys(this.peers))}`;
    }
    const size = Buffer.byteLength(event);
    if (size < 1 || size > MAX_NAME_BYTES || /\p{Surrogate}/u.test(event)) {
      return `the name of an event has 1 to ${MAX_NAME_BYTES} bytes of UTF-8, also behind the @: '${event.slice(0, 100)}'`;
    }
    const events = this.peers[app];
    if (events && !events.includes(event)) return `app '${app}' has no slot '${event}'${didYouMean(event, events)}`;
    return "";
  }

  /** The route of such a name. */
  routeTo(name) {
    const known = this.#foreign.get(name);
    if (known) return known;
    const log = `>@${name.slice(0, name.indexOf("@"))}`;
    if (!this.#apps.has(log)) this.#apps.set(log, new Target(log, this.#idOf(log), this.#orders.one(), log));
    const route = new Route(this.names.length, name, true, false, [this.#apps.get(log)], true);
    this.names.push(name);
    this.#foreign.set(name, route);
    return route;
  }
}

/**
 * What tells the ids of events that `node` has chained from those of other nodes of this pool that heard the same event:
 * its number among them, if it is not the first.
 */
function branchOf(routing, event, node) {
  const number = routing.here.get(event)?.indexOf(node) ?? 0;
  return number > 0 ? `${number}-` : "";
}

/** pool -> event -> names of the nodes that listen to it, all in the order of their declaration. */
function listenersOf(topology) {
  const poolOf = new Map((topology.nodes ?? []).map((node) => [node.name, node.pool ?? "main"]));
  const pools = new Map();
  for (const { event, node } of topology.slots ?? []) {
    const pool = poolOf.get(node);
    if (!pools.has(pool)) pools.set(pool, new Map());
    const events = pools.get(pool);
    if (!events.has(event)) events.set(event, []);
    events.get(event).push(node);
  }
  return pools;
}

/**
 * Numbers for sets of listeners: sets that share a node have the same, since that node has to get its events in the
 * order in which they were emitted.
 */
class Orders {
  #of = new Map();
  #next = 0;

  add(pool, nodes) {
    const names = nodes.map((node) => `${pool}\0${node}`);
    const order = this.one();
    const joined = new Set(names.map((name) => this.#of.get(name)));
    for (const [name, other] of this.#of) if (joined.has(other)) this.#of.set(name, order);
    for (const name of names) this.#of.set(name, order);
  }

  of(pool, node) {
    return this.#of.get(`${pool}\0${node}`);
  }

  one() {
    return this.#next++;
  }
}

function pairOf(node, target) {
  return `${node}\0${target}`;
}

/**
 * A pair chains if an edge of it is declared (`emits`), both nodes are synchronous and in one pool, no slot of the target
 * says `chain: false`, and the pair lies on no cycle of declared pairs. The engine works it out alike.
 */
function chainedPairs(topology) {
  const nodes = new Map((topology.nodes ?? []).map((node) => [node.name, node]));
  const slots = topology.slots ?? [];
  const declared = new Map();
  for (const { node, emits = [] } of slots) {
    for (const event of emits) {
      for (const target of slots) {
        if (target.event !== event) continue;
        if (!declared.has(node)) declared.set(node, new Set());
        declared.get(node).add(target.node);
      }
    }
  }
  // What waits for its turn would hold back what is done.
  const unchained = new Set(slots.filter((slot) => slot.chain === false || slot.rate > 0).map((slot) => slot.node));
  const component = components(declared);
  const poolOf = (name) => nodes.get(name)?.pool ?? "main";
  const isSync = (name) => nodes.get(name)?.is_async !== true;
  const pairs = new Set();
  for (const [node, targets] of declared) {
    for (const target of targets) {
      const isNear = poolOf(node) === poolOf(target) && isSync(node) && isSync(target);
      if (isNear && !unchained.has(target) && component.get(node) !== component.get(target)) pairs.add(pairOf(node, target));
    }
  }
  return pairs;
}

/**
 * The number of each vertex' strongly connected component (Tarjan 1972, without recursion): two vertices lie on a common
 * cycle exactly if theirs are equal.
 */
function components(graph) {
  const index = new Map();
  const low = new Map();
  const component = new Map();
  const stack = [];
  const enter = (vertex) => {
    index.set(vertex, index.size);
    low.set(vertex, index.get(vertex));
    stack.push(vertex);
    return [vertex, (graph.get(vertex) ?? []).values()];
  };
  const lower = (vertex, to) => low.set(vertex, Math.min(low.get(vertex), to));
  let count = 0;
  for (const start of graph.keys()) {
    const way = index.has(start) ? [] : [enter(start)];
    while (way.length) {
      const [vertex, targets] = way.at(-1);
      const { value: target, done } = targets.next();
      if (done) {
        way.pop();
        if (way.length) lower(way.at(-1)[0], low.get(vertex));
        if (low.get(vertex) !== index.get(vertex)) continue;
        let member;
        do component.set((member = stack.pop()), count);
        while (member !== vertex);
        count++;
      } else if (!index.has(target)) way.push(enter(target));
      else if (!component.has(target)) lower(vertex, index.get(target));
    }
  }
  return component;
}

module.exports = { branchOf, MAX_FOREIGN, Routing, chainedPairs, pairOf };
