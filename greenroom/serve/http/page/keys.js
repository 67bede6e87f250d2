// What the keyboard does, and the dialog that tells.

import { Dialog } from "./pieces.js";
import { html, useEffect } from "./preact.js";
import { addressOf, go } from "./place.js";
import { moveInList } from "./sessions.js";

const KEYS = [
  ["/", "Search sessions"],
  ["j", "Next session in the list"],
  ["k", "Session before"],
  ["Enter", "Open the session"],
  ["f", "Keep to the end of the timeline"],
  ["s", "Search in this session"],
  ["r", "Write a message"],
  ["1", "Sessions"],
  ["2", "Approvals"],
  ["3", "Providers"],
  ["?", "These keys"],
  ["Esc", "Close, empty a search, or leave a field"],
];

const click = (selector) => () => document.querySelector(selector)?.click();
const focus = (selector) => () => {
  const field = document.querySelector(selector);
  field?.focus();
  field?.select?.();
};

const ACTIONS = {
  "/": focus("#search"),
  j: () => moveInList(1),
  k: () => moveInList(-1),
  f: click("[data-testid=follow]"),
  s: focus("#search-session"),
  r: focus("#message"),
  1: () => go(addressOf.sessions()),
  2: () => go(addressOf.approvals()),
  3: () => go(addressOf.providers()),
};

/** Out of the field; one that searches is emptied first. */
function leave(event) {
  const field = event.target;
  if (field.type !== "search" || !field.value) {
    field.blur();
    return;
  }
  event.preventDefault(); // the browser would empty it and tell nobody
  field.value = "";
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

export function useKeys({ onHelp }) {
  useEffect(() => {
    const onKey = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.target.matches("input, textarea, select")) {
        if (event.key === "Escape") leave(event);
        return;
      }
      const action = event.key === "?" ? onHelp : ACTIONS[event.key];
      if (!action) return;
      event.preventDefault();
      action();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
}

export function KeyHelp({ onClose }) {
  return html`<${Dialog} title="Keys" onClose=${onClose}>
    <dl class="key-list">
      ${KEYS.map(([key, text]) => html`<dt key=${key}><kbd>${key}</kbd></dt><dd>${text}</dd>`)}
    </dl>
  <//>`;
}
