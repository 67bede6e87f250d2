// Tool calls, and the people who were asked about them.

import { Decide, Expires } from "./approvals.js";
import { Diff, isDiff } from "./diff.js";
import { count, duration, oneLine, words } from "./format.js";
import { Frame } from "./entry_frame.js";
import { Icon } from "./icons.js";
import { isWaiting } from "./entry.js";
import { Json } from "./json.js";
import { useKept } from "./pieces.js";
import { html, useState } from "./preact.js";
import { marked } from "./prose.js";
import { useClock } from "./store.js";

const MOST_CHARACTERS = 10_000;

export function ToolEntry({ entry, desk }) {
  const [isOpen, setOpen] = useKept(desk.kept, `open ${entry.key}`, false);
  const data = { ...entry.started?.data, ...entry.ended?.data };
  const outcome = toolOutcome(entry);
  return html`<${Frame} entry=${entry} desk=${desk} icon="tool" tone=${outcome.tone}>
    <div class="tool-head">
      <button type="button" class="fold" aria-expanded=${String(isOpen)} onClick=${() => setOpen(!isOpen)}>
        <${Icon} name="chevron" /><code class="tool-name">${marked(data.tool_name ?? "tool", desk.query)}</code>
        <span class="preview">${marked(oneLine(data.tool_input ?? {}), desk.query)}</span>
      </button>
      <${ToolTime} entry=${entry} isRunning=${outcome.isRunning} />
      <span class="badge" data-tone=${outcome.tone} ...${outcomeAttributes(entry)}>${outcome.text}</span>
    </div>
    ${!isOpen && data.error && html`<p class="failure">${oneLine(data.error, 300)}</p>`}
    ${isOpen && html`<${ToolDetails} data=${data} hasEnded=${Boolean(entry.ended)} />`}
  <//>`;
}

function outcomeAttributes(entry) {
  return entry.started && entry.ended ? { "data-testid": "event", "data-seq": entry.ended.seq } : {};
}

function toolOutcome({ approval, ended, run }) {
  if (!ended && run?.endedAt !== null) return { text: "no end", tone: "warn" };
  if (!ended && approval && isWaiting(approval)) return { text: "waits", tone: "asks", isRunning: true };
  if (!ended) return { text: "running", tone: "running", isRunning: true };
  if (ended.type === "tool_call_completed") return { text: "done", tone: "good" };
  const outcome = ended.data.outcome ?? "error";
  return { text: words(outcome), tone: outcome === "error" ? "bad" : "warn" };
}

function ToolTime({ entry, isRunning }) {
  const now = useClock(500, Boolean(isRunning));
  if (!entry.started) return null;
  const end = entry.ended ? Date.parse(entry.ended.timestamp) : isRunning ? now : null;
  return end === null ? null : html`<span class="time">${duration(end - entry.at)}</span>`;
}

function ToolDetails({ data, hasEnded }) {
  return html`<div class="tool-details">
    <h4>Input</h4>
    <${Value} value=${data.tool_input ?? {}} />
    ${
      hasEnded &&
      html`<h4>Output</h4>
        <${Value} value=${data.tool_output ?? null} />`
    }
    ${
      data.error &&
      html`<h4>Error</h4>
        <${Value} value=${data.error} />`
    }
  </div>`;
}

function Value({ value }) {
  if (isDiff(value)) return html`<${Diff} text=${value} />`;
  if (typeof value === "string" && value.includes("\n")) return html`<${Lines} text=${value} />`;
  return html`<${Json} value=${value} />`;
}

function Lines({ text }) {
  const [isWhole, setWhole] = useState(false);
  const shown = isWhole ? text : text.slice(0, MOST_CHARACTERS);
  return html`<pre class="code" tabindex="0">${shown}</pre>
    ${
      shown.length < text.length &&
      html`<button type="button" class="link" onClick=${() => setWhole(true)}>
        Show all ${count(text.length)} characters
      </button>`
    }`;
}

export function ApprovalEntry({ entry, desk }) {
  const { data } = entry.request;
  const waits = isWaiting(entry);
  const approval = { id: data.approval_id, session_id: desk.sessionId, expires_at: data.expires_at };
  return html`<${Frame} entry=${entry} desk=${desk} icon="hand" tone=${waits ? "asks" : approvalTone(entry)}>
    <div
      class="approval-inline"
      data-testid=${waits ? "approval" : "decided-approval"}
      data-approval-id=${data.approval_id}
    >
      <div class="approval-head">
        <h3 class="who">${waits ? "Waits for approval" : "Approval"}</h3>
        <code class="tool-name">${data.tool_name}</code>
        ${waits && html`<${Expires} at=${data.expires_at} />`}
        ${!waits && html`<${Decided} entry=${entry} />`}
      </div>
      ${waits && html`<${Json} value=${data.tool_input ?? {}} />`}
      ${waits && html`<${Decide} approval=${approval} approvals=${desk.approvals} />`}
    </div>
  <//>`;
}

function approvalTone({ decision }) {
  if (!decision) return "warn";
  return decision.type === "tool_approval_granted" ? "good" : "bad";
}

function Decided({ entry }) {
  const { decision } = entry;
  if (!decision) return html`<span class="badge" data-tone="warn">not decided</span>`;
  const { by, reason } = decision.data;
  const isGranted = decision.type === "tool_approval_granted";
  return html`<span class="decided" data-testid="event" data-seq=${decision.seq}>
    <span class="badge" data-tone=${isGranted ? "good" : "bad"}>${isGranted ? "approved" : "denied"}</span>
    ${by && html` by ${by}`}${reason && html`: “${reason}”`}
    <span class="time"> after ${duration(Date.parse(decision.timestamp) - entry.at)}</span>
  </span>`;
}
