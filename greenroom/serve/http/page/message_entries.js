// What was said in a session: by people, by agents, and what agents thought.

import { asText, oneLine, words } from "./format.js";
import { Frame } from "./entry_frame.js";
import { Icon } from "./icons.js";
import { useKept } from "./pieces.js";
import { html } from "./preact.js";
import { marked, Prose } from "./prose.js";

export function SaidEntry({ entry, desk }) {
  return entry.kind === "thinking"
    ? html`<${Thinking} entry=${entry} desk=${desk} />`
    : html`<${Spoken}
      entry=${entry}
      desk=${desk}
      label=${entry.role === "assistant" ? "Assistant" : words(entry.role)}
    />`;
}

/** What a streamed message tells of its events. */
function streamed(entry) {
  if (!entry.pieces) return undefined;
  return { "data-first-seq": entry.seq, "data-last-seq": entry.lastSeq, "data-count": entry.pieces };
}

/** The whole message that closed a streamed one is an event of its own. */
function Received({ entry }) {
  if (!entry.pieces || !entry.received) return null;
  return html`<span hidden data-testid="event" data-seq=${entry.received.seq}></span>`;
}

function Spoken({ entry, desk, label }) {
  const [isWhole, setWhole] = useKept(desk.kept, `whole ${entry.key}`, false);
  return html`<${Frame} entry=${entry} desk=${desk} icon="bolt" tone="assistant" attributes=${streamed(entry)}>
    <h3 class="who">${label}</h3>
    <${Prose}
      text=${entry.text}
      query=${desk.query}
      isGrowing=${Boolean(entry.isOpen)}
      isWhole=${isWhole}
      onWhole=${() => setWhole(true)}
    />
    <${Received} entry=${entry} />
  <//>`;
}

function Thinking({ entry, desk }) {
  const [isOpen, setOpen] = useKept(desk.kept, `open ${entry.key}`, false);
  const [isWhole, setWhole] = useKept(desk.kept, `whole ${entry.key}`, false);
  const preview = entry.isOpen ? oneLine(entry.text.slice(-200)) : oneLine(entry.text);
  return html`<${Frame} entry=${entry} desk=${desk} icon="thought" tone="thinking" attributes=${streamed(entry)}>
    <button type="button" class="fold" aria-expanded=${String(isOpen)} onClick=${() => setOpen(!isOpen)}>
      <${Icon} name="chevron" /><span class="who">Thinking</span>
      ${!isOpen && html`<span class="preview">${marked(preview, desk.query)}</span>`}
    </button>
    ${
      isOpen &&
      html`<${Prose}
        text=${entry.text}
        query=${desk.query}
        isGrowing=${Boolean(entry.isOpen)}
        isWhole=${isWhole}
        onWhole=${() => setWhole(true)}
      />`
    }
    <${Received} entry=${entry} />
  <//>`;
}

export function SentEntry({ entry, desk }) {
  const [isWhole, setWhole] = useKept(desk.kept, `whole ${entry.key}`, false);
  const { role, content } = entry.events[0].data;
  return html`<${Frame} entry=${entry} desk=${desk} icon=${role === "system" ? "info" : "user"} tone=${role}>
    <h3 class="who">${role ?? "user"}</h3>
    <${Prose} text=${asText(content)} query=${desk.query} isWhole=${isWhole} onWhole=${() => setWhole(true)} />
  <//>`;
}

export function SteeredEntry({ entry, desk }) {
  const { message, delivered } = entry.events[0].data;
  return html`<${Frame} entry=${entry} desk=${desk} icon="steer" tone="user">
    <h3 class="who">Steered ${delivered && html`<span class="note">${words(delivered)}</span>`}</h3>
    <${Prose} text=${asText(message)} query=${desk.query} isWhole=${true} />
  <//>`;
}
