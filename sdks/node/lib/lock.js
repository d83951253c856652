"use strict";

/**
 * A lock between threads, in a cell of shared memory: 0 free, 1 taken, 2 taken and somebody waits. Main thread and
 * watchdog write whole frames under it, as both write to the same socket.
 */
class Lock {
  constructor(cells, index) {
    this.cells = cells;
    this.index = index;
  }

  with(action) {
    const { cells, index } = this;
    if (Atomics.compareExchange(cells, index, 0, 1) !== 0) {
      while (Atomics.exchange(cells, index, 2) !== 0) Atomics.wait(cells, index, 2);
    }
    try {
      action();
    } finally {
      if (Atomics.exchange(cells, index, 0) === 2) Atomics.notify(cells, index, 1);
    }
  }
}

module.exports = { Lock };
