// Text of people and agents: code is set apart, what is searched for is marked, and what is long is cut.

import { count } from "./format.js";
import { html } from "./preact.js";

const MOST_CHARACTERS = 6_000;
const FENCE = /^```([^\n`]*)\n([\s\S]*?)(?:^```[ \t]*$|(?![\s\S]))/m;

/** `isGrowing`: the end of it is what matters. */
export function Prose({ text, query, isGrowing = false, isWhole, onWhole }) {
  const isCut = text.length > MOST_CHARACTERS && !isWhole;
  const shown = !isCut ? text : isGrowing ? text.slice(-MOST_CHARACTERS) : text.slice(0, MOST_CHARACTERS);
  const more =
    isCut &&
    html`<button type="button" class="link" onClick=${onWhole}>Show all ${count(text.length)} characters</button>`;
  return html`<div class="prose">
    ${isGrowing && more}${blocks(shown).map((block, place) => blockView(block, place, query))}${
      isGrowing && html`<span class="caret" aria-hidden="true"></span>`
    }${!isGrowing && more}
  </div>`;
}

/** Text and fenced code, in turn. */
function blocks(text) {
  const found = [];
  let rest = text;
  for (;;) {
    const fence = FENCE.exec(rest);
    if (!fence) break;
    if (fence.index) found.push({ text: rest.slice(0, fence.index) });
    found.push({ code: fence[2].replace(/\n$/, ""), language: fence[1].trim() });
    rest = rest.slice(fence.index + fence[0].length).replace(/^\n/, "");
  }
  if (rest) found.push({ text: rest });
  return found;
}

function blockView(block, place, query) {
  if (block.code !== undefined) {
    return html`<pre
      key=${place}
      class="code"
      data-language=${block.language}
      tabindex="0"
    >
      <code>${marked(block.code, query)}</code>
    </pre>`;
  }
  return html`<span key=${place} class="words">${inline(block.text.replace(/\n+$/, ""), query)}</span>`;
}

/** Inline code and strong words; the marks that make them are left out. */
function inline(text, query) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) {
      return html`<code>${marked(part.slice(1, -1), query)}</code>`;
    }
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) {
      return html`<strong>${marked(part.slice(2, -2), query)}</strong>`;
    }
    return marked(part, query);
  });
}

/** The text with what is searched for marked. */
export function marked(text, query) {
  if (!query) return text;
  const found = [];
  const lower = text.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(query); at !== -1; at = lower.indexOf(query, from)) {
    if (at > from) found.push(text.slice(from, at));
    found.push(html`<mark>${text.slice(at, at + query.length)}</mark>`);
    from = at + query.length;
  }
  found.push(text.slice(from));
  return found;
}
