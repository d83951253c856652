// Numbers and times, as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (n) => whole.format(Math.round(n));

/** 1,234 up to ten thousand, then 12.3k, 4.56M. */
export function brief(n) {
  if (n < 10_000) return count(n);
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (n >= size) {
      const part = n / size;
      return `${part.toFixed(part < 10 ? 2 : part < 100 ? 1 : 0)}${unit}`;
    }
  }
  return count(n);
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond < 0.05) return "0";
  return perSecond < 10 ? perSecond.toFixed(1) : brief(perSecond);
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (n >= size) return `${(n / size).toFixed(n / size < 10 ? 1 : 0)} ${unit}`;
  }
  return `${n} B`;
}

export function seconds(n) {
  if (n === null || n === undefined) return "–";
  if (n < 0.001) return `${(n * 1e6).toFixed(0)} µs`;
  if (n < 1) return `${(n * 1e3).toFixed(n < 0.01 ? 1 : 0)} ms`;
  if (n < 120) return `${n.toFixed(n < 10 ? 1 : 0)} s`;
  if (n < 7200) return `${Math.round(n / 60)} min`;
  if (n < 172_800) return `${Math.round(n / 3600)} h`;
  return `${Math.round(n / 86_400)} d`;
}

/** How long something took, in seconds: down to the millionth. */
export function span(n) {
  if (n < 1) return n < 0.001 ? `${Math.round(n * 1e6)} µs` : `${(n * 1e3).toFixed(n < 0.1 ? 1 : 0)} ms`;
  return seconds(n);
}

export const ahead = (time) => {
  const left = time - Date.now() / 1000;
  return left < 1 ? "now" : `in ${seconds(Math.round(left))}`;
};

export const ago = (time) => (time ? `${seconds(Math.max(0, Date.now() / 1000 - time))} ago` : "");

export function moment(time) {
  if (!time) return "";
  const at = new Date(time * 1000);
  const pad = (n) => String(n).padStart(2, "0");
  const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock}`;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
