// The left side: the list of sessions, with a search and a filter.

import { plural, shortCount, shortId, words } from "./format.js";
import { Icon } from "./icons.js";
import { Age, Dialog, Status } from "./pieces.js";
import { addressOf, go } from "./place.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { useStore } from "./store.js";

const STATUSES = ["pending", "active", "paused", "completed", "failed", "cancelled"];
const MOST_TAGS = 4;

export function SessionsPane({ tenant, sessionId }) {
  const { sessions, approvals } = tenant;
  useStore(sessions);
  useStore(approvals);
  const [isOpening, setOpening] = useState(false);
  const items = sessions.visible();
  const waiting = new Map();
  for (const item of approvals.items.values()) waiting.set(item.session_id, (waiting.get(item.session_id) ?? 0) + 1);
  const inTabOrder = items.some((one) => one.id === sessionId) ? sessionId : items[0]?.id;
  return html`<nav class="sessions" aria-label="Sessions">
    <div class="sessions-head">
      <label class="search">
        <${Icon} name="search" />
        <input
          type="search"
          id="search"
          placeholder="Id, agent or tag"
          aria-label="Search sessions"
          value=${sessions.query}
          onInput=${(event) => sessions.search(event.target.value)}
          onKeyDown=${intoList}
        />
        <kbd>/</kbd>
      </label>
      <div class="sessions-tools">
        <label class="unseen" for="status">Status</label>
        <select
          id="status"
          data-testid="status-filter"
          value=${sessions.status}
          onChange=${(event) => sessions.filter(event.target.value)}
        >
          <option value="">Any status</option>
          ${STATUSES.map((status) => html`<option key=${status} value=${status}>${words(status)}</option>`)}
        </select>
        <span class="spring"></span>
        <button
          type="button"
          class="button small"
          data-testid="new-session"
          onClick=${() => setOpening(true)}
        >
          <${Icon} name="plus" />New
        </button>
      </div>
    </div>
    <ul class="session-list" data-testid="session-list" aria-label=${plural(items.length, "session")}>
      ${items.map(
        (session) => html`<${Item}
          key=${session.id}
          session=${session}
          activity=${sessions.activity.get(session.id)}
          waiting=${waiting.get(session.id) ?? 0}
          isShown=${session.id === sessionId}
          isInTabOrder=${session.id === inTabOrder}
        />`,
      )}
    </ul>
    <${ListEnd} sessions=${sessions} isEmpty=${!items.length} />
    ${isOpening && html`<${NewSession} tenant=${tenant} onClose=${() => setOpening(false)} />`}
  </nav>`;
}

/** From the search box into the list. */
function intoList(event) {
  if (event.key !== "ArrowDown" && event.key !== "Enter") return;
  event.preventDefault();
  const first = document.querySelector("[data-testid=session-item]");
  if (event.key === "Enter") first?.click();
  else first?.focus();
}

function Item({ session, activity, waiting, isShown, isInTabOrder }) {
  const running = activity?.running.size ?? 0;
  const queued = activity?.queued.size ?? 0;
  const tags = session.tags ?? [];
  return html`<li>
    <a
      href=${addressOf.session(session.id)}
      class="session-item"
      data-testid="session-item"
      data-session-id=${session.id}
      data-status=${session.status}
      aria-current=${isShown ? "page" : undefined}
      tabindex=${isInTabOrder ? 0 : -1}
    >
      <span class="session-line">
        <${Status} state=${session.status} quiet=${true} />
        <strong>${session.agent_id}</strong>
        <span class="spring"></span>
        <${Count} number=${waiting} kind="asks" text="waiting for approval"><${Icon} name="hand" /><//>
        <${Count} number=${running} kind="runs-now" text="running"><i class="pulse"></i><//>
        <${Count} number=${queued} kind="in-line" text="queued">+<//>
        <${Age} of=${session.created_at} label="Created" />
      </span>
      <span class="session-line">
        <code>${shortId(session.id)}</code>
        ${session.status !== "active" && html`<${StateWord} state=${session.status} />`}
        <span class="session-tags">
          ${tags.slice(0, MOST_TAGS).map((tag) => html`<${Tag} key=${tag} tag=${tag} />`)}
        </span>
      </span>
    </a>
  </li>`;
}

function StateWord({ state }) {
  return html`<span class="session-state" data-state=${state}>${words(state)}</span>`;
}

function Tag({ tag }) {
  return html`<span class="tag">${tag}</span>`;
}

function Count({ number, kind, text, children }) {
  if (!number) return null;
  return html`<span class=${`count ${kind}`} title=${`${number} ${text}`}>
    ${children}${shortCount(number)}<span class="unseen">${` ${text}`}</span>
  </span>`;
}

function ListEnd({ sessions, isEmpty }) {
  const isFiltered = sessions.query || sessions.status;
  if (sessions.isLoading && isEmpty) return html`<p class="empty">Loading…</p>`;
  return html`<div class="list-end">
    ${isEmpty && html`<p class="empty">${isFiltered ? "No session matches." : "There are no sessions yet."}</p>`}
    ${
      sessions.nextCursor &&
      html`<button
        type="button"
        class="button small"
        data-testid="load-more"
        disabled=${sessions.isLoading}
        onClick=${() => sessions.loadMore()}
      >
        ${sessions.isLoading ? "Loading…" : "Load more"}
      </button>`
    }
  </div>`;
}

function NewSession({ tenant, onClose }) {
  const [providers, setProviders] = useState([]);
  const [isBusy, setBusy] = useState(false);
  const form = useRef(null);
  useEffect(() => {
    tenant.api.get("providers").then(
      (answer) => setProviders(answer.items),
      () => {}, // the service's own choice is still there
    );
  }, [tenant]);
  const submit = async (event) => {
    event.preventDefault();
    const { agent, provider } = form.current.elements;
    setBusy(true);
    try {
      const body = { agent_id: agent.value.trim() };
      if (provider.value) body.provider = provider.value;
      const session = await tenant.api.post("sessions", body);
      tenant.sessions.insert(session);
      onClose();
      go(addressOf.session(session.id));
    } catch (problem) {
      setBusy(false);
      onClose();
      tenant.onProblem(problem);
    }
  };
  return html`<${Dialog} title="New session" onClose=${onClose}>
    <form ref=${form} class="stacked" onSubmit=${submit}>
      <label for="agent">Agent</label>
      <input id="agent" name="agent" required maxlength="200" value="agent" autocomplete="off" />
      <label for="provider">Provider</label>
      <select id="provider" name="provider">
        <option value="">The default</option>
        ${providers.map((one) => html`<option key=${one.name} value=${one.name}>${one.name} (${one.kind})</option>`)}
      </select>
      <footer>
        <button type="button" class="button" onClick=${onClose}>Close</button>
        <button type="submit" class="button primary" data-testid="open-session" disabled=${isBusy}>Open session</button>
      </footer>
    </form>
  <//>`;
}

/** Move the focus in the list: j and k. */
export function moveInList(by) {
  const items = [...document.querySelectorAll("[data-testid=session-item]")];
  if (!items.length) return;
  const focused = items.indexOf(document.activeElement);
  const from = focused !== -1 ? focused : items.findIndex((item) => item.getAttribute("aria-current"));
  const next = items[Math.min(items.length - 1, Math.max(0, from + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}
