"use strict";

/** A msgpack extension that JavaScript has no type for; travels on as it came. */
class Ext {
  constructor(type, data) {
    this.type = type;
    this.data = data;
  }
}

module.exports = { Ext };
