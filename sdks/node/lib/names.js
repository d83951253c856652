"use strict";

const { inspect } = require("node:util");

const { BadArgument } = require("./errors");

/** What namespaces, keys, tags and metadata of objects may be. */

const MAX_KEY = 900;
const MAX_TAGS = 50;
const MAX_TAG = 200;
const MAX_USER = 2000;
const NAMESPACE = /^[a-z0-9][a-z0-9_.-]{0,62}$/;
const NAME = /^[a-z0-9][a-z0-9_.-]{0,99}$/;
const TYPE = /^[A-Za-z0-9!#$&^_.+-]{1,100}\/[A-Za-z0-9!#$&^_.+-]{1,100}( *; *[\x20-\x7e]{1,200})?$/;
const CONTROL = /[\0-\x1f\x7f]/; // eslint-disable-line no-control-regex
const UNPLAIN = /[\p{Cc}\p{Surrogate}\u2028\u2029]/u;

function shown(value) {
  return inspect(value, { depth: 1, breakLength: Infinity }).slice(0, 100);
}

function checkNamespace(name) {
  if (typeof name !== "string" || !NAMESPACE.test(name) || name.includes("..")) {
    throw new BadArgument(
      `a namespace is 1 to 63 small letters, digits, '-', '_' and '.', the first a letter or digit, without '..', ` +
        `not ${shown(name)}`,
    );
  }
  return name;
}

function checkKey(key) {
  if (typeof key !== "string" || !key) {
    throw new BadArgument(`the key of an object is text of 1 character at least, not ${shown(key)}`);
  }
  checkPrefix(key);
  if (key.split("/").some((part) => part === "" || part === "." || part === "..")) {
    throw new BadArgument(`the key of an object has no empty part, '.' or '..' between its '/': ${shown(key)}`);
  }
  return key;
}

/** What keys may begin with. */
function checkPrefix(prefix) {
  if (typeof prefix !== "string") throw new BadArgument(`the prefix of keys is text, not ${shown(prefix)}`);
  if (/\p{Surrogate}/u.test(prefix)) throw new BadArgument(`a key cannot be encoded as UTF-8: ${shown(prefix)}`);
  const size = Buffer.byteLength(prefix);
  if (size > MAX_KEY) {
    throw new BadArgument(`the key of an object has at most ${MAX_KEY} bytes of UTF-8; '${prefix.slice(0, 30)}'... has ${size}`);
  }
  if (CONTROL.test(prefix)) throw new BadArgument(`the key of an object has no control characters: ${shown(prefix)}`);
  return prefix;
}

/** Sorted by their characters, each once. */
function checkTags(tags) {
  if (typeof tags === "string" || typeof tags?.[Symbol.iterator] !== "function") {
    throw new BadArgument(`tags are a list of text, such as ["raw"], not ${shown(tags)}`);
  }
  const found = [...new Set(tags)];
  for (const tag of found) {
    if (typeof tag !== "string" || !tag || UNPLAIN.test(tag) || Buffer.byteLength(tag) > MAX_TAG) {
      throw new BadArgument(`a tag is printable text of 1 to ${MAX_TAG} bytes, not ${shown(tag)}`);
    }
  }
  if (found.length > MAX_TAGS) throw new BadArgument(`an object has at most ${MAX_TAGS} tags, not ${found.length}`);
  return found.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))); // by code points, as the engine has it
}

/** Metadata of one's own, as `[name, value]`. */
function checkUser(user) {
  if (typeof user !== "object" || user === null || Array.isArray(user)) {
    throw new BadArgument(`user metadata is an object of text, such as { camera: "b" }, not ${shown(user)}`);
  }
  const entries = Object.entries(user);
  let size = 0;
  for (const [name, value] of entries) {
    if (!NAME.test(name)) {
      throw new BadArgument(`a name of user metadata is small letters, digits, '-', '_' and '.', not ${shown(name)}`);
    }
    if (typeof value !== "string" || UNPLAIN.test(value)) {
      throw new BadArgument(`user metadata '${name}' is printable text, not ${shown(value)}`);
    }
    size += name.length + Buffer.byteLength(value);
  }
  if (size > MAX_USER) {
    throw new BadArgument(`the user metadata of an object has at most ${MAX_USER} bytes, not ${size}`);
  }
  return entries;
}

function checkType(contentType) {
  if (typeof contentType !== "string" || !TYPE.test(contentType)) {
    throw new BadArgument(`a content type is as image/png, not ${shown(contentType)}`);
  }
  return contentType;
}

module.exports = { checkKey, checkNamespace, checkPrefix, checkTags, checkType, checkUser, shown };
