// An app as a graph: events and nodes, slots between an event and a node, emits between a node and an event.

export function graphOf(topology) {
  const outputs = new Set(topology.outputs);
  const heard = new Set(topology.slots.map((slot) => slot.event));
  const events = new Map();
  const emits = new Map();
  const event = (name) => {
    if (!events.has(name)) {
      events.set(name, { name, isOutput: outputs.has(name), isForeign: !outputs.has(name) && !heard.has(name), from: [] });
    }
    return events.get(name);
  };
  for (const slot of topology.slots) event(slot.event);
  for (const name of topology.outputs) event(name);
  for (const slot of topology.slots) {
    const seen = slot.seen.filter((name) => events.has(name));
    for (const [names, isDeclared] of [[slot.emits, true], [seen, false]]) {
      for (const name of names) {
        const id = `${slot.node}\n${name}`;
        if (!emits.has(id)) {
          emits.set(id, { id: `emit:${id}`, node: slot.node, event: name, isDeclared });
          event(name).from.push(slot.node);
        }
        emits.get(id).isDeclared ||= isDeclared;
      }
    }
  }
  const slots = topology.slots.map((slot) => ({ ...slot, name: `${slot.event}>${slot.node}` }));
  return { topology, events, nodes: new Map(topology.nodes.map((node) => [node.name, node])), slots, emits: [...emits.values()] };
}

/** What a topology is, so that another one is noticed. */
export const shapeOf = (info) => `${info.digest} ${(info.state === "running" || info.state === "paused")} ${info.since > 0 ? Math.round(info.since) : 0}`;

export class Numbers {
  /** rates: `Rates` of counters, named as here. */
  constructor(rates) {
    this.rates = rates;
    this.now = null;
    this.waiting = { slots: {}, is_all: true };
    this.kinds = [];
  }

  take(numbers) {
    this.now = numbers;
    const counters = { finished: 0 };
    for (const kind of ["fed", "emitted", "processed", "taken", "failures"]) {
      for (const [name, value] of Object.entries(numbers[kind])) counters[`${kind} ${name}`] = value;
    }
    for (const [name, pool] of Object.entries(numbers.pools)) {
      counters[`pool ${name}`] = pool.finished;
      counters.finished += pool.finished;
    }
    this.rates.take(counters);
  }

  total(kind, name) {
    return this.now?.[kind][name] ?? 0;
  }

  rate(kind, name) {
    return this.now === null ? null : this.rates.of(`${kind} ${name}`) ?? 0;
  }

  eventRate(name) {
    return (this.rate("fed", name) ?? 0) + (this.rate("emitted", name) ?? 0);
  }

  dead(fits) {
    return this.kinds.filter(fits).reduce((sum, kind) => sum + kind.count, 0);
  }

  queued(slot) {
    return this.waiting.slots[slot] ?? 0;
  }
}
