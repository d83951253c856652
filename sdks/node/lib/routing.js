"use strict";

/** Where every name leads, worked out once from the topology of the whole app. */

/** A log that takes a name. Runs of one `order` keep their order among each other; only names of a `group` share one. */
class Target {
  constructor(log, logId, order, group) {
    this.log = log;
    this.logId = logId;
    this.order = order;
    this.group = group;
  }
}

/** Where one name leads. `isDropped`: an output that nobody takes, whose events are only counted. */
class Route {
  constructor(id, name, isOutput, isDropped, targets) {
    this.id = id;
    this.name = name;
    this.isOutput = isOutput;
    this.isDropped = isDropped;
    this.targets = targets;
  }
}

class Routing {
  /** `topology`: as the engine tells it; `pool`: this worker's; `taken`: outputs that somebody takes. */
  constructor(topology, pool, taken) {
    this.app = topology.name;
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
  }
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

module.exports = { Routing };
