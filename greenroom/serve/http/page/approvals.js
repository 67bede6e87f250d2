// Tool calls that wait for a person: the question, and all of them in one place.

import { duration, fullTime, plural, shortId } from "./format.js";
import { Icon } from "./icons.js";
import { Json } from "./json.js";
import { addressOf } from "./place.js";
import { html, useState } from "./preact.js";
import { useClock, useStore } from "./store.js";

const TOLD_OF_SECONDS = 600;

/** Approve and deny, with a reason for those who read the log. `approval`: { id, session_id, expires_at }. */
export function Decide({ approval, approvals }) {
  useStore(approvals);
  const [reason, setReason] = useState("");
  const isBusy = approvals.deciding.has(approval.id);
  const decide = (decision) => approvals.decide(approval.session_id, approval.id, decision, reason.trim());
  return html`<div class="decide">
    <input
      type="text"
      maxlength="200"
      placeholder="Reason (optional)"
      aria-label="Reason"
      value=${reason}
      onInput=${(event) => setReason(event.target.value)}
    />
    <button
      type="button"
      class="button primary"
      data-testid="approve"
      disabled=${isBusy}
      onClick=${() => decide("approve")}
    >
      <${Icon} name="approve" />Approve
    </button>
    <button type="button" class="button danger" data-testid="deny" disabled=${isBusy} onClick=${() => decide("deny")}>
      <${Icon} name="cross" />Deny
    </button>
  </div>`;
}

/** How long there is to decide. */
export function Expires({ at }) {
  const left = Date.parse(at) - useClock(1_000);
  if (Number.isNaN(left)) return null;
  const isSoon = left < TOLD_OF_SECONDS * 1_000;
  const text = left <= 0 ? "expired" : isSoon ? `expires in ${duration(left)}` : `expires ${fullTime(at)}`;
  return html`<span class="expires" data-soon=${String(isSoon)} title=${fullTime(at)}>${text}</span>`;
}

/** All that wait, of all sessions. */
export function ApprovalsView({ tenant }) {
  const { approvals, sessions } = tenant;
  useStore(approvals);
  useStore(sessions);
  const items = [...approvals.items.values()].sort((one, other) => (one.expires_at < other.expires_at ? -1 : 1));
  return html`<main class="page" tabindex="-1">
    <header class="page-head">
      <h1>Approvals</h1>
      <p>Tool calls that wait for a person. What nobody decides in time is denied.</p>
    </header>
    ${!items.length && html`<${NothingWaits} isLoaded=${approvals.isLoaded} />`}
    <ul class="approval-list" aria-label=${plural(items.length, "approval")}>
      ${items.map(
        (item) => html`<${Waiting}
          key=${item.id}
          item=${item}
          approvals=${approvals}
          agent=${agentOf(sessions, item)}
        />`,
      )}
    </ul>
  </main>`;
}

function NothingWaits({ isLoaded }) {
  if (!isLoaded) return html`<p class="empty">Loading…</p>`;
  return html`<div class="empty">
    <${Icon} name="approve" />
    <p>Nothing waits for you.</p>
  </div>`;
}

function Waiting({ item, approvals, agent }) {
  return html`<li class="approval" data-testid="approval" data-approval-id=${item.id}>
    <div class="approval-head">
      <${Icon} name="hand" />
      <code class="tool-name">${item.tool_name}</code>
      <${Expires} at=${item.expires_at} />
    </div>
    <p class="approval-of">
      ${agent && html`${agent} · `}<a href=${addressOf.session(item.session_id)}>${shortId(item.session_id)}</a> · run
      ${" "}<code>${shortId(item.run_id)}</code>
    </p>
    <${Json} value=${item.input} />
    <${Decide} approval=${item} approvals=${approvals} />
  </li>`;
}

function agentOf(sessions, item) {
  return sessions.items.find((session) => session.id === item.session_id)?.agent_id;
}
