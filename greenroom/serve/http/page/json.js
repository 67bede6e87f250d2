// JSON as a tree that folds. Everything in it is text.

import { count } from "./format.js";
import { html, useState } from "./preact.js";

const MOST_CHILDREN = 100;
const MOST_CHARACTERS = 2_000;
const OPEN_DEPTH = 2;
const OPEN_CHILDREN = 30;

export function Json({ value }) {
  return html`<div class="json"><${Node} value=${value} depth=${0} /></div>`;
}

function Node({ name, value, depth }) {
  if (value === null || typeof value !== "object") {
    return html`<div class="json-line">${label(name)}<${Leaf} value=${value} /></div>`;
  }
  return html`<${Branch} name=${name} value=${value} depth=${depth} />`;
}

function Branch({ name, value, depth }) {
  const entries = Object.entries(value);
  const isList = Array.isArray(value);
  const [isOpen, setOpen] = useState(depth < OPEN_DEPTH && entries.length <= OPEN_CHILDREN);
  const [shown, setShown] = useState(MOST_CHILDREN);
  const [start, end] = isList ? "[]" : "{}";
  if (!entries.length)
    return html`<div class="json-line">${label(name)}<span class="json-mark">${start}${end}</span></div>`;
  const size = `${count(entries.length)} ${isList ? "items" : entries.length === 1 ? "key" : "keys"}`;
  return html`<div>
    <button type="button" class="json-line json-fold" aria-expanded=${String(isOpen)} onClick=${() => setOpen(!isOpen)}>
      ${label(name)}<span class="json-mark">${isOpen ? start : `${start} ${size} ${end}`}</span>
    </button>
    ${
      isOpen &&
      html`<div class="json-inner">
          ${entries.slice(0, shown).map(
            ([key, child]) => html`<${Node}
              key=${key}
              name=${key}
              value=${child}
              depth=${depth + 1}
            />`,
          )}
          ${
            entries.length > shown &&
            html`<button type="button" class="link" onClick=${() => setShown(shown + MOST_CHILDREN)}>
              ${count(entries.length - shown)} more
            </button>`
          }
        </div>
        <div class="json-line json-mark">${end}</div>`
    }
  </div>`;
}

function Leaf({ value }) {
  const [isWhole, setWhole] = useState(false);
  if (typeof value !== "string")
    return html`<span class=${`json-${value === null ? "null" : typeof value}`}>${String(value)}</span>`;
  const isLong = value.length > MOST_CHARACTERS && !isWhole;
  return html`<span class="json-string">${isLong ? value.slice(0, MOST_CHARACTERS) : value}</span>${
    isLong &&
    html` <button type="button" class="link" onClick=${() => setWhole(true)}>
      ${count(value.length - MOST_CHARACTERS)} more characters
    </button>`
  }`;
}

function label(name) {
  return name === undefined ? null : html`<span class="json-key">${name}</span>`;
}
