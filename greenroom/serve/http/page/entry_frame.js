// What all entries of a timeline have: when, what kind, and the raw events on demand. `desk` is what they need beside
// the entry: { api, sessionId, approvals, kept, query, onProblem }.

import { path } from "./api.js";
import { clock, count, fullTime, offset } from "./format.js";
import { Icon } from "./icons.js";
import { CopyButton, useKept } from "./pieces.js";
import { html, useState } from "./preact.js";

const MOST_PIECES = 200;

/** `attributes` stand in for those of an entry that is one event. */
export function Frame({ entry, desk, icon, tone = "", isSlim = false, attributes, children }) {
  const [isRaw, setRaw] = useKept(desk.kept, `raw ${entry.key}`, false);
  const first = entry.events[0];
  const moment = new Date(entry.at).toISOString();
  const shownAttributes = attributes ?? { "data-seq": first.seq };
  return html`<article
    class="entry"
    data-tone=${tone}
    data-slim=${String(isSlim)}
    data-type=${entry.type}
    data-testid="event"
    ...${shownAttributes}
  >
    <time class="entry-at" datetime=${moment} title=${fullTime(moment)}>${momentOf(entry)}</time>
    <span class="entry-icon"><${Icon} name=${icon} /></span>
    <div class="entry-body">${children}</div>
    <button
      type="button"
      class="raw-button"
      aria-expanded=${String(isRaw)}
      aria-label="Raw JSON"
      title="Raw JSON"
      onClick=${() => setRaw(!isRaw)}
    >
      {}
    </button>
    ${isRaw && html`<${Raw} entry=${entry} desk=${desk} />`}
  </article>`;
}

function momentOf(entry) {
  const began = entry.run?.firstStartedAt;
  return began == null ? clock(entry.at) : offset(entry.at - began) || clock(entry.at);
}

function Raw({ entry, desk }) {
  const [pieces, setPieces] = useState(null);
  const load = async () => {
    const types = "message_streamed";
    const given = { after: entry.seq - 1, limit: MOST_PIECES, types, run_id: entry.run?.id };
    try {
      const { events } = await desk.api.get(path("sessions", desk.sessionId, "events"), given);
      setPieces(events.filter((event) => event.seq <= entry.lastSeq));
    } catch (problem) {
      desk.onProblem(problem);
    }
  };
  const shown = pieces ? [...pieces, ...entry.events] : entry.events;
  const text = shown.map((event) => JSON.stringify(event, null, 2)).join("\n\n");
  return html`<div class="raw">
    ${
      entry.pieces > 0 &&
      !pieces &&
      html`<button
        type="button"
        class="link"
        onClick=${load}
      >
        Load the streamed pieces (${count(entry.pieces)})
      </button>`
    }
    ${
      text &&
      html`<div class="raw-text">
        <pre tabindex="0">${text}</pre>
        <${CopyButton} text=${text} label="Copy JSON" />
      </div>`
    }
  </div>`;
}

/** An entry of one line. */
export function Line({ entry, desk, icon, title, tone = "", children }) {
  return html`<${Frame} entry=${entry} desk=${desk} icon=${icon} tone=${tone} isSlim=${true}>
    <p class="line"><b>${title}</b> <span>${children}</span></p>
  <//>`;
}
