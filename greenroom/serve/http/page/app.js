// The page: the sign-in, and behind it the bar and the view of this moment.

import { Api, keepKey, keptKey } from "./api.js";
import { ApprovalsView } from "./approvals.js";
import { capital, shortId } from "./format.js";
import { KeyHelp, useKeys } from "./keys.js";
import { addressOf, usePlace } from "./place.js";
import { IconButton, Notices } from "./pieces.js";
import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { ProvidersView } from "./providers.js";
import { SessionView } from "./session_view.js";
import { SessionsPane } from "./sessions.js";
import { SignIn } from "./sign_in.js";
import { useStore } from "./store.js";
import { Tenant } from "./tenant.js";
import { ThemeSwitch } from "./theme_switch.js";

const MOST_NOTICES = 4;

export function App() {
  const [key, setKey] = useState(keptKey());
  const [refusal, setRefusal] = useState("");
  const signIn = (given) => {
    keepKey(given);
    setRefusal("");
    setKey(given);
  };
  const signOut = (why = "") => {
    keepKey(null);
    setRefusal(why);
    setKey(null);
  };
  if (key === null) return html`<${SignIn} refusal=${refusal} onKey=${signIn} />`;
  return html`<${Desk} key=${key} apiKey=${key} onSignOut=${signOut} />`;
}

function Desk({ apiKey, onSignOut }) {
  const place = usePlace();
  const [notices, tell, dismiss] = useNotices();
  const [isHelping, setHelping] = useState(false);
  const tenant = useMemo(() => {
    const api = new Api(apiKey, () => onSignOut("The key is not valid (any more)."));
    return new Tenant(api, (problem) => problem.status !== 401 && tell(problem.message));
  }, [apiKey]);
  useEffect(() => {
    tenant.start();
    return () => tenant.stop();
  }, [tenant]);
  useKeys({ onHelp: () => setHelping(true) });

  return html`<div class="desk" data-view=${place.view} data-open=${String(place.sessionId !== null)}>
    <${Bar} tenant=${tenant} place=${place} onHelp=${() => setHelping(true)} onSignOut=${() => onSignOut()} />
    <div class="view">
      ${place.view === "sessions" && html`<${SessionsPane} tenant=${tenant} sessionId=${place.sessionId} />`}
      <${View} place=${place} tenant=${tenant} />
    </div>
    <${Announcer} tenant=${tenant} />
    <${Notices} notices=${notices} onDismiss=${dismiss} />
    ${isHelping && html`<${KeyHelp} onClose=${() => setHelping(false)} />`}
  </div>`;
}

function View({ place, tenant }) {
  if (place.view === "providers") return html`<${ProvidersView} tenant=${tenant} />`;
  if (place.view === "approvals") return html`<${ApprovalsView} tenant=${tenant} />`;
  if (place.sessionId === null) return html`<${NothingOpen} />`;
  return html`<${SessionView} key=${place.sessionId} tenant=${tenant} sessionId=${place.sessionId} />`;
}

function NothingOpen() {
  return html`<main class="session nothing" tabindex="-1">
    <h1 class="unseen">Sessions</h1>
    <div class="empty over">
      <p>Choose a session to see what it does.</p>
      <p class="keys-hint"><kbd>j</kbd> <kbd>k</kbd> move, <kbd>Enter</kbd> opens, <kbd>?</kbd> shows all keys</p>
    </div>
  </main>`;
}

function Bar({ tenant, place, onHelp, onSignOut }) {
  useStore(tenant.approvals);
  const waiting = tenant.approvals.items.size;
  useTitle(waiting, place);
  const link = (view, text, more) =>
    html`<a href=${addressOf[view]()} aria-current=${place.view === view ? "page" : undefined}>${text}${more}</a>`;
  const badge =
    waiting > 0 &&
    html`<span class="count asks" data-testid="approval-count">${waiting}<span class="unseen"> waiting</span></span>`;
  return html`<header class="bar">
    <a
      class="brand"
      href=${addressOf.sessions()}
      aria-label="Greenroom"
    >
      <img src="assets/icon.svg" alt="" width="22" height="22" /><span>Greenroom</span>
    </a>
    <nav aria-label="Views">
      ${link("sessions", "Sessions")} ${link("approvals", "Approvals", badge)} ${link("providers", "Providers")}
    </nav>
    <span class="spring"></span>
    <${ConnectionState} connection=${tenant.connection} />
    <${IconButton} icon="info" label="Keys (?)" onClick=${onHelp} />
    <${ThemeSwitch} />
    <${IconButton} icon="signout" label="Sign out" data-testid="sign-out" onClick=${onSignOut} />
  </header>`;
}

/** The title of the tab: how many wait for a person, and where the reader is. */
function useTitle(waiting, place) {
  const where = place.sessionId ? shortId(place.sessionId) : capital(place.view);
  const title = `${waiting ? `(${waiting}) ` : ""}${where} · Greenroom`;
  useEffect(() => {
    document.title = title;
  }, [title]);
}

const CONNECTION_TEXT = { live: "Live", reconnecting: "Reconnecting…", off: "Not connected" };

function ConnectionState({ connection }) {
  useStore(connection);
  const { state } = connection;
  return html`<span class="connection" role="status" data-testid="connection" data-state=${state}>
    <i class="dot"></i><span>${CONNECTION_TEXT[state]}</span>
  </span>`;
}

/** For those who hear the page. */
function Announcer({ tenant }) {
  useStore(tenant.announcements);
  return html`<p class="unseen" aria-live="polite">${tenant.announcements.text}</p>`;
}

/** What is told to the reader: the newest, each text once. */
function useNotices() {
  const [notices, setNotices] = useState([]);
  const next = useRef(0);
  const tell = (text) => {
    next.current += 1;
    const notice = { id: next.current, text };
    setNotices((known) => [...known.filter((one) => one.text !== text), notice].slice(-MOST_NOTICES));
  };
  const dismiss = (id) => setNotices((known) => known.filter((one) => one.id !== id));
  return [notices, tell, dismiss];
}
