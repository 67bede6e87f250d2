// The list of sessions, newest first, as the service tells it page by page and the feed changes it.

import { path } from "./api.js";
import { RUN_ENDINGS } from "./event_types.js";
import { Store } from "./store.js";

const MOST_ACTIVITY = 5_000; // sessions whose runs are counted
const PAGE = 50;

const STATES = {
  session_started: "active",
  session_resumed: "active",
  session_paused: "paused",
  session_completed: "completed",
  session_failed: "failed",
  session_cancelled: "cancelled",
};

export class SessionList extends Store {
  constructor(api, onProblem) {
    super();
    this.api = api;
    this.onProblem = onProblem;
    this.items = [];
    this.nextCursor = null;
    this.isLoading = true;
    this.status = "";
    this.query = "";
    this.found = new Map();
    this.activity = new Map();
    this.newest = null;
    this.missed = null; // what the feed tells while the list is asked for
  }

  /** The first page, under the filter of this moment. */
  async load() {
    await this.page(null);
  }

  async loadMore() {
    if (this.nextCursor && !this.isLoading) await this.page(this.nextCursor);
  }

  async page(cursor) {
    const status = this.status;
    this.isLoading = true;
    const missed = (this.missed = []);
    this.changed();
    try {
      const given = { order: "desc", limit: PAGE, status, cursor };
      const page = await this.api.get("sessions", given);
      if (status !== this.status) return;
      this.items = cursor ? merged(this.items, page.items) : page.items;
      this.nextCursor = page.next_cursor;
      this.isLoading = false;
    } catch (problem) {
      this.isLoading = false;
      this.onProblem(problem);
    }
    if (this.missed === missed) this.missed = null;
    for (const event of missed) this.take(event); // the answer may be older than they are
    this.changed();
  }

  filter(status) {
    this.status = status;
    this.items = [];
    this.nextCursor = null;
    this.load();
  }

  /** Look for the text in what is loaded, and ask the service for an agent, a tag or an id of that name. */
  search(text) {
    this.query = text.trim();
    clearTimeout(this.searchTimer);
    this.found = new Map();
    if (this.query.length > 1) this.searchTimer = setTimeout(() => this.ask(this.query), 250);
    this.changed();
  }

  async ask(query) {
    const wanted = { order: "desc", limit: PAGE, status: this.status };
    const answers = await Promise.allSettled([
      this.api.get("sessions", { ...wanted, agent_id: query }),
      this.api.get("sessions", { ...wanted, tag: query }),
      query.startsWith("ses_")
        ? this.api.get(path("sessions", query)).then((one) => ({ items: [one] }))
        : { items: [] },
    ]);
    if (query !== this.query) return;
    for (const answer of answers) {
      for (const session of answer.value?.items ?? []) {
        if (!this.status || session.status === this.status) this.found.set(session.id, session);
      }
    }
    this.changed();
  }

  /** What is to be shown. */
  visible() {
    if (!this.query) return this.items;
    const text = this.query.toLowerCase();
    const here = this.items.filter((session) => matches(session, text));
    const known = new Set(here.map((session) => session.id));
    return [...here, ...[...this.found.values()].filter((session) => !known.has(session.id))];
  }

  /** Take over what the feed tells. */
  take(event) {
    this.missed?.push(event);
    if (event.run_id) this.noteRun(event);
    if (event.type === "session_created") this.insert(sessionOf(event));
    const state = STATES[event.type];
    if (state) this.noteState(event.session_id, state, event.timestamp);
    this.changed();
  }

  noteRun(event) {
    const { running, queued } = this.activityOf(event.session_id);
    if (event.type === "run_queued") {
      running.delete(event.run_id);
      queued.add(event.run_id);
    } else if (event.type === "run_started") {
      queued.delete(event.run_id);
      running.add(event.run_id);
    } else if (RUN_ENDINGS.has(event.type)) {
      queued.delete(event.run_id);
      running.delete(event.run_id);
    }
  }

  activityOf(sessionId) {
    if (this.activity.size > MOST_ACTIVITY) this.activity.delete(this.activity.keys().next().value);
    if (!this.activity.has(sessionId)) this.activity.set(sessionId, { running: new Set(), queued: new Set() });
    return this.activity.get(sessionId);
  }

  /** The session itself has told what it is doing. */
  noteStatus(status) {
    const known = { running: new Set(status.in_flight), queued: new Set(status.queued) };
    this.activity.set(status.session_id, known);
    this.changed();
  }

  noteState(sessionId, state, timestamp) {
    this.items = this.items.map((session) =>
      session.id === sessionId ? { ...session, status: state, updated_at: timestamp } : session,
    );
    if (!this.status) return;
    if (state !== this.status) this.items = this.items.filter((session) => session.id !== sessionId);
    else if (!this.items.some((session) => session.id === sessionId)) this.fetch(sessionId);
  }

  async fetch(sessionId) {
    try {
      this.replace(await this.api.get(path("sessions", sessionId)), { isNew: true });
    } catch {
      // it may be gone already
    }
  }

  /** A newer record of a session; one that is not in the list is added only if that is wanted. */
  replace(session, { isNew = false } = {}) {
    const isKnown = this.items.some((one) => one.id === session.id);
    if (isKnown) this.items = this.items.map((one) => (one.id === session.id ? session : one));
    else if (isNew) this.insert(session);
    this.changed();
  }

  insert(session) {
    if (this.items.some((one) => one.id === session.id)) return;
    if (this.status && this.status !== session.status) return;
    const place = this.items.findIndex((one) => one.created_at < session.created_at);
    if (place === -1 && this.nextCursor) return; // it comes with a later page
    const at = place === -1 ? this.items.length : place;
    this.items = [...this.items.slice(0, at), session, ...this.items.slice(at)];
    this.changed();
  }
}

function matches(session, text) {
  return [session.id, session.agent_id, ...session.tags].some((part) => String(part).toLowerCase().includes(text));
}

function merged(items, more) {
  const known = new Set(items.map((item) => item.id));
  return [...items, ...more.filter((item) => !known.has(item.id))];
}

function sessionOf(event) {
  const { data } = event;
  const moments = { created_at: event.timestamp, updated_at: event.timestamp };
  return { tags: [], ...data, ...moments, id: event.session_id, status: "pending", epoch: 1 };
}
