// The session that is open in the page: its record, what it is doing, and its events as they come.

import { path } from "./api.js";
import { Journal } from "./journal.js";
import { Store } from "./store.js";
import { Stream } from "./stream.js";

const STATUS_EVERY_MS = 1_000;
const MOST_HISTORY = 50_000; // events; of a longer session the newest are read

const RETRY_MS = 3_000;

const ENDED = new Set(["completed", "failed", "cancelled"]);

export function hasEnded(session) {
  return Boolean(session) && ENDED.has(session.status);
}

export class OpenSession extends Store {
  /** `onState` is told the state of the stream, `onProblem` what the service refused. */
  constructor(api, id, { onState, onProblem }) {
    super();
    this.api = api;
    this.id = id;
    this.session = null;
    this.status = null;
    this.missing = null;
    this.journal = new Journal();
    this.isFollowed = null; // not known until the record is there
    this.streamState = null;
    this.onState = onState;
    this.onProblem = onProblem;
    this.closed = false;
    this.open();
  }

  async open() {
    try {
      this.session = await this.api.get(path("sessions", this.id));
    } catch (problem) {
      this.missing = problem;
      this.changed();
      if (!isFinal(problem)) this.retryTimer = setTimeout(() => this.open(), RETRY_MS);
      return;
    }
    if (this.closed) return;
    this.missing = null;
    this.isFollowed ??= !hasEnded(this.session);
    this.changed();
    await this.refreshStatus();
    if (this.closed) return;
    const lastSeq = this.status?.last_seq ?? 0;
    this.readFrom(Math.max(0, lastSeq - MOST_HISTORY));
  }

  close() {
    this.closed = true;
    this.stream?.close();
    clearTimeout(this.statusTimer);
    clearTimeout(this.recordTimer);
    clearTimeout(this.retryTimer);
  }

  /** Read the events after this one, and go on with what happens. */
  readFrom(afterSeq) {
    this.stream?.close();
    this.journal.startFrom(afterSeq);
    const handlers = {
      onMessages: (messages, stream) => this.take(messages, stream),
      onState: (state) => {
        this.streamState = state;
        this.onState(state);
        this.changed();
      },
      onProblem: this.onProblem,
    };
    const lastId = afterSeq ? String(afterSeq) : null;
    this.stream = new Stream(this.api, path("sessions", this.id, "events", "stream"), handlers, { lastId });
  }

  take(messages, stream) {
    for (const message of messages) {
      if (message.event === "resync_required") {
        const lowest = JSON.parse(message.data).lowest_seq ?? 1;
        this.journal.startFrom(lowest - 1);
        stream.lastId = String(lowest - 1);
        return "again";
      }
      if (message.event === "error") return "broken";
      if (message.id === null || message.event === "ready") continue;
      const event = JSON.parse(message.data);
      if (this.journal.add(event)) this.note(event);
    }
    return this.journal.hasEnded ? "end" : undefined;
  }

  note(event) {
    if (this.journal.state && this.session && this.session.status !== this.journal.state && isSessionEvent(event)) {
      this.scheduleRecord();
    }
    if (/^(run_|session_|tool_approval_)/.test(event.type)) this.scheduleStatus();
  }

  /** Ask for the record again, once for all that happens in a moment. */
  scheduleRecord() {
    this.recordTimer ??= setTimeout(() => {
      this.recordTimer = null;
      this.refreshRecord();
    }, 200);
  }

  async refreshRecord() {
    if (this.closed) return;
    try {
      this.show(await this.api.get(path("sessions", this.id)));
    } catch {
      // the next event of the session asks again
    }
  }

  /** A newer record. */
  show(session) {
    if (this.closed) return;
    this.session = session;
    this.changed();
  }

  scheduleStatus() {
    if (this.statusTimer) return;
    const wait = Math.max(50, STATUS_EVERY_MS - (Date.now() - (this.statusAt ?? 0)));
    this.statusTimer = setTimeout(() => {
      this.statusTimer = null;
      this.refreshStatus();
    }, wait);
  }

  /** An ended session is not asked: that would wake it for nothing. */
  async refreshStatus() {
    this.statusAt = Date.now();
    if (this.closed) return;
    if (hasEnded(this.session) || this.journal.hasEnded) {
      this.status = null;
      this.changed();
      return;
    }
    try {
      this.status = await this.api.get(path("sessions", this.id, "status"));
    } catch {
      this.status = null; // the events tell what happens; the next one asks again
    }
    this.changed();
  }
}

/** Asking again would be answered the same way. */
function isFinal(problem) {
  return problem.status >= 400 && problem.status < 500 && problem.status !== 429;
}

function isSessionEvent(event) {
  return event.type.startsWith("session_") && event.type !== "session_steered";
}
