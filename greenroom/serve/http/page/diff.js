// A unified diff, line by line.

import { count } from "./format.js";
import { html, useState } from "./preact.js";

const MOST_LINES = 200;

/** Whether the text is a diff. */
export function isDiff(text) {
  return typeof text === "string" && /^(diff --git |--- \S.*\n\+\+\+ |@@ -\d)/m.test(text.slice(0, 2_000));
}

export function Diff({ text }) {
  const [most, setMost] = useState(MOST_LINES);
  const lines = text.replace(/\n$/, "").split("\n");
  return html`<div class="diff" role="region" aria-label="Diff" tabindex="0">
    ${lines.slice(0, most).map((line, place) => html`<div key=${place} data-line=${kindOf(line)}>${line || " "}</div>`)}
    ${
      lines.length > most &&
      html`<button
        type="button"
        class="link"
        onClick=${() => setMost(most + 1_000)}
      >
        ${count(lines.length - most)} more lines
      </button>`
    }
  </div>`;
}

function kindOf(line) {
  if (/^(diff |index |\+\+\+ |--- |new file|deleted file|rename |similarity )/.test(line)) return "head";
  if (line.startsWith("@@")) return "place";
  if (line.startsWith("+")) return "added";
  return line.startsWith("-") ? "removed" : "same";
}
