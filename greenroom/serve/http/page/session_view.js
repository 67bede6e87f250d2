// One session: its head, its timeline, its details.

import { path } from "./api.js";
import { Composer } from "./composer.js";
import { Details } from "./details.js";
import { shortId } from "./format.js";
import { addressOf, go } from "./place.js";
import { CopyButton, IconButton, Status } from "./pieces.js";
import { html, useEffect, useMemo, useState } from "./preact.js";
import { OpenSession } from "./session.js";
import { useStore } from "./store.js";
import { Timeline } from "./timeline.js";

/** `tenant` hears what the session tells of itself. */
export function SessionView({ tenant, sessionId }) {
  const open = useOpenSession(tenant, sessionId);
  return open && html`<${Shown} key=${sessionId} open=${open} tenant=${tenant} />`;
}

function useOpenSession(tenant, sessionId) {
  const [open, setOpen] = useState(null);
  useEffect(() => {
    const { api, connection, sessions, onProblem } = tenant;
    const onState = (state) => connection.note("session", state);
    const next = new OpenSession(api, sessionId, { onState, onProblem });
    let told = {};
    const unlisten = next.listen(() => {
      if (next.session && next.session !== told.session) sessions.replace(next.session);
      if (next.status && next.status !== told.status) sessions.noteStatus(next.status);
      told = { session: next.session, status: next.status };
    });
    setOpen(next);
    return () => {
      unlisten();
      next.close();
      connection.note("session", null);
    };
  }, [tenant, sessionId]);
  return open?.id === sessionId ? open : null;
}

function Shown({ open, tenant }) {
  useStore(open);
  const [tab, setTab] = useState("timeline");
  const actions = useMemo(() => actionsOf(open, tenant), [open, tenant]);
  const desk = useMemo(
    () => ({
      api: tenant.api,
      sessionId: open.id,
      approvals: tenant.approvals,
      onProblem: tenant.onProblem,
      kept: new Map(),
      runActions: actions,
    }),
    [open, tenant, actions],
  );
  if (open.missing) return html`<main class="session"><p class="empty over">${open.missing.message}</p></main>`;
  return html`<main class="session" data-tab=${tab} tabindex="-1">
    <${Head} open=${open} tab=${tab} setTab=${setTab} />
    <div class="middle">
      <${Timeline} open=${open} desk=${desk} />
      <${Composer} open=${open} actions=${actions} />
    </div>
    <${Details} open=${open} actions=${actions} />
  </main>`;
}

function Head({ open, tab, setTab }) {
  useStore(open.journal);
  const { session, journal } = open;
  return html`<header class="session-head">
    <${IconButton}
      icon="back"
      label="All sessions"
      class="icon-button only-narrow"
      onClick=${() => go(addressOf.sessions())}
    />
    <h1>${session?.agent_id ?? " "}</h1>
    ${session && html`<${Status} state=${session.status} />`}
    <span class="session-id"><code title=${open.id}>${shortId(open.id)}</code><${CopyButton}
      text=${open.id}
      label="Copy id"
    /></span>
    <span class="spring"></span>
    <span class="events">
      <b data-testid="event-count">${journal.count}</b>${journal.count === 1 ? " event" : " events"}
    </span>
    <div class="tabs" role="group" aria-label="View">
      <button
        type="button"
        aria-pressed=${String(tab === "timeline")}
        onClick=${() => setTab("timeline")}
      >
        Timeline
      </button>
      <button
        type="button"
        aria-pressed=${String(tab === "details")}
        data-testid="details-tab"
        onClick=${() => setTab("details")}
      >
        Details
      </button>
    </div>
  </header>`;
}

/** What can be done with the session; each tells the reader of a refusal, and whether it was done. */
function actionsOf(open, tenant) {
  const { api, onProblem } = tenant;
  const attempt = async (work) => {
    try {
      await work();
      return true;
    } catch (problem) {
      onProblem(problem);
      return false;
    } finally {
      open.scheduleStatus();
    }
  };
  const runPath = (runId, verb) => path("sessions", open.id, "runs", runId, verb);
  return {
    session: (verb) => attempt(async () => open.show(await api.post(path("sessions", open.id, verb)))),
    submit: (input) => attempt(() => api.post(path("sessions", open.id, "runs"), { input, options: {} })),
    cancel: (runId) => attempt(() => api.post(runPath(runId, "cancel"))),
    interrupt: (runId) => attempt(() => api.post(runPath(runId, "interrupt"))),
    steer: (runId, message) => attempt(() => api.post(runPath(runId, "steer"), { message })),
  };
}
