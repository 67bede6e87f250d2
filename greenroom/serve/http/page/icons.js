// Small line icons. They say nothing to those who hear the page: the text beside them does.

import { html } from "./preact.js";

const PATHS = {
  approve: "M3.5 8.5l3 3 6-7",
  arrow: "M3 8h9.5M9 4.5L12.5 8 9 11.5",
  back: "M9.5 3.5L5 8l4.5 4.5",
  bolt: "M9 2L3.5 9H8l-1 5 5.5-7H8z",
  chevron: "M6 4l4 4-4 4",
  clock: "M8 4.5V8l2.3 1.5M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0z",
  close: "M4 4l8 8M12 4l-8 8",
  coins: "M13.5 5.5c0 1.1-1.8 2-4 2s-4-.9-4-2 1.8-2 4-2 4 .9 4 2zm0 0v5c0 1.1-1.8 2-4 2M2.5 9.5c0-1.1 1.8-2 4-2",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
  cross: "M4.5 4.5l7 7M11.5 4.5l-7 7",
  diff: "M5 2.5v6M2 5.5h6M2.5 13h5M12 3L7 13",
  dot: "M8 6.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3z",
  fold: "M5 2.5l3 3 3-3M5 13.5l3-3 3 3",
  follow: "M8 2.5v8M4.5 7.5L8 11l3.5-3.5M3.5 13.5h9",
  gauge: "M3 12a6 6 0 1 1 10 0M8 9l2.5-3",
  hand: "M5 8V4.2a1 1 0 0 1 2 0V7m0-3.8a1 1 0 0 1 2 0V7m0-2.8a1 1 0 0 1 2 0V9c0 3-1.2 4.5-3.7 4.5C4.5 13.5 4 11.5 2.8 9.6c-.5-.9.6-1.6 1.3-.9L5 9.6",
  info: "M8 7.2v4M8 4.8v.2M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0z",
  key: "M9.5 6.5a3 3 0 1 1-2.1-2.860L13.5 9.7V12h-2v-1.5H10V9L8.6 8.9",
  list: "M5.5 4h8M5.5 8h8M5.5 12h8M2.5 4h.1M2.5 8h.1M2.5 12h.1",
  moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.5l7 4.5-7 4.5z",
  plus: "M8 3v10M3 8h10",
  route: "M3 12.5c5 0 5-9 10-9M10.5 1.5l2.5 2-2.5 2",
  search: "M10.2 10.2L13.5 13.5M11.5 7a4.5 4.5 0 1 1-9 0 4.5 4.5 0 0 1 9 0z",
  shield: "M8 2l5 2v4c0 3-2 5-5 6-3-1-5-3-5-6V4z",
  signout: "M6 2.5H3v11h3M7 8h6.5M11 5.5L13.5 8 11 10.5",
  steer: "M13.5 8A5.5 5.5 0 1 1 2.5 8a5.5 5.5 0 0 1 11 0zM8 9.5v4M6.6 7.5L3 6.2M9.4 7.5L13 6.2",
  stop: "M4 4h8v8H4z",
  sun: "M8 1.5v1.5M8 13v1.5M1.5 8H3M13 8h1.5M3.4 3.4l1 1M11.6 11.6l1 1M12.6 3.4l-1 1M4.4 11.6l-1 1M10.8 8a2.8 2.8 0 1 1-5.6 0 2.8 2.8 0 0 1 5.6 0z",
  thought: "M6 13.5h4M6.5 11.3c0-1.5-2.2-2.2-2.2-4.7a3.7 3.7 0 0 1 7.4 0c0 2.5-2.2 3.2-2.2 4.7z",
  tool: "M9.5 5.5L13 2.8a3.6 3.6 0 0 1-4.8 4.8l-4.5 4.9a1.3 1.3 0 0 1-1.9-1.9L6.6 6A3.6 3.6 0 0 1 11.4 1.3z",
  user: "M8 8a2.7 2.7 0 1 0 0-5.4A2.7 2.7 0 0 0 8 8zM3 13.5c.5-2.5 2.5-3.8 5-3.8s4.5 1.3 5 3.8",
  warn: "M8 6.2v3M8 11.2v.2M8 2.2l6.2 11.3H1.8z",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>`;
}
