// Small pictures, drawn in the colour of the text beside them.

import { s } from "./dom.js";

const PATHS = {
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.2l7.5 4.8L5 12.8z",
  cron: "M2.5 4.5h11v9h-11zM2.5 7.2h11M5.3 2.5v2.6M10.7 2.5v2.6",
  timer: "M8 4.2a5 5 0 1 0 0 10 5 5 0 0 0 0-10zM8 6.4v2.9l1.9 1.2M6.4 1.8h3.2M8 1.8v2.4",
  watch: "M2 12.5v-9h4l1.5 2H14v7z",
  webhook: "M5.6 10.4a2.6 2.6 0 1 1-2.1-2.6M5.2 10h5.2a2.4 2.4 0 1 1-.2 1.6M8 5.4a2.2 2.2 0 1 1 2-1.2M7.6 5.6L5 10M9.4 4.8l2 4",
  copy: "M5.5 5.5h7v8h-7zM3.5 10.5v-8h7",
  trace: "M3 3.5h4M3 3.5v9h4M3 8h4M9 3.5h4M9 8h4M9 12.5h4",
};

export const icon = (name) =>
  s("svg", { class: "icon", viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" }, s("path", { d: PATHS[name] }));
