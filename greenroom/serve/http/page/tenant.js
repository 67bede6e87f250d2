// What all sessions of the key's tenant do: the lists, and one feed of events that keeps them up to date.

import { ApprovalList } from "./approval_list.js";
import { SessionList } from "./session_list.js";
import { Store } from "./store.js";
import { Stream } from "./stream.js";

const POLL_MS = 5_000;

const TYPES = [
  "session_created",
  "session_started",
  "session_paused",
  "session_resumed",
  "session_completed",
  "session_failed",
  "session_cancelled",
  "run_queued",
  "run_started",
  "run_completed",
  "run_failed",
  "run_cancelled",
  "run_timeout",
  "tool_approval_requested",
  "tool_approval_granted",
  "tool_approval_denied",
];

/** How the streams of the page are: as bad as the worst of them. */
class Connection extends Store {
  constructor() {
    super();
    this.states = new Map();
  }

  /** The state of one stream; null: there is none. */
  note(name, state) {
    if (state === null) this.states.delete(name);
    else this.states.set(name, state);
    this.changed();
  }

  get state() {
    const states = [...this.states.values()];
    if (states.includes("reconnecting")) return "reconnecting";
    return states.includes("live") ? "live" : "off";
  }
}

/** The lists and the feed that keeps them up to date. */
export class Tenant {
  constructor(api, onProblem) {
    this.api = api;
    this.onProblem = onProblem;
    this.sessions = new SessionList(api, onProblem);
    this.approvals = new ApprovalList(api, onProblem);
    this.connection = new Connection();
    this.refused = new Set(); // what the key may not ask for
    this.announcements = new Store();
    this.announcements.text = "";
  }

  start() {
    this.connection.note("feed", "reconnecting");
    const handlers = {
      onMessages: (messages) => this.take(messages),
      onState: (state) => this.connection.note("feed", state),
      onOpen: () => this.reload(),
      onProblem: () => this.poll(),
    };
    this.feed = new Stream(this.api, `events/stream?types=${TYPES.join(",")}`, handlers);
  }

  stop() {
    this.feed?.close();
    clearInterval(this.polling);
  }

  /** The feed begins with what is new, so the lists are read once it is open: nothing falls between. A feed that knows
   * where it left off tells what was missed. */
  reload() {
    if (this.isLoaded && this.feed.lastId !== null) {
      this.approvals.load();
      return;
    }
    this.isLoaded = true;
    this.sessions.load();
    this.approvals.load();
  }

  /** A service without a feed is asked now and then. */
  poll() {
    const ask = () => {
      if (document.hidden) return;
      if (!this.sessions.nextCursor) this.sessions.load();
      this.approvals.load();
    };
    ask();
    this.polling = setInterval(ask, POLL_MS);
  }

  take(messages) {
    for (const message of messages) {
      if (message.event === "resync_required") {
        this.feed.lastId = null;
        this.isLoaded = false;
        return "again";
      }
      if (message.event === "error") return "broken";
      if (!TYPES.includes(message.event)) continue; // `ready`: it only brings the cursor
      const event = JSON.parse(message.data);
      this.sessions.take(event);
      this.approvals.take(event);
      this.announce(event);
    }
    return undefined;
  }

  /** For those who hear the page: what wants attention. */
  announce(event) {
    const text = {
      tool_approval_requested: `A call of ${event.data.tool_name} waits for approval.`,
      run_failed: "A run has failed.",
    }[event.type];
    if (!text) return;
    this.announcements.text = text;
    this.announcements.changed();
  }
}
