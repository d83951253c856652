"use strict";

/** "; did you mean 'total'?", or what there is. */
function didYouMean(name, known) {
  const near = [...known]
    .map((other) => ({ other, away: distance(name, other) }))
    .filter(({ other, away }) => away <= Math.max(1, Math.floor(Math.max(name.length, other.length) * 0.45)))
    .sort((a, b) => a.away - b.away)
    .slice(0, 3)
    .map(({ other }) => `'${other}'`);
  if (near.length) return `; did you mean ${near.join(" or ")}?`;
  const all = [...known].sort();
  const shown = all.slice(0, 20).map((other) => `'${other}'`);
  if (!shown.length) return "";
  return `; known are ${shown.join(", ")}${all.length > shown.length ? ", ..." : ""}`;
}

/** Levenshtein's. */
function distance(a, b) {
  if (Math.abs(a.length - b.length) > 10) return Infinity;
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length];
}

module.exports = { didYouMean };
