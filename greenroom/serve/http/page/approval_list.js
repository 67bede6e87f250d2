// Tool calls that wait for a person, of all sessions.

import { path } from "./api.js";
import { RUN_ENDINGS } from "./event_types.js";
import { Store } from "./store.js";

export class ApprovalList extends Store {
  constructor(api, onProblem) {
    super();
    this.api = api;
    this.onProblem = onProblem;
    this.items = new Map();
    this.deciding = new Set();
    this.isLoaded = false;
    this.missed = null; // what the feed tells while the list is asked for
  }

  async load() {
    const missed = (this.missed = []);
    try {
      const { items } = await this.api.get("approvals");
      this.items = new Map(items.map((item) => [item.id, item]));
      this.isLoaded = true;
    } catch (problem) {
      if (problem.status !== 401) this.onProblem(problem);
    }
    if (this.missed === missed) this.missed = null;
    for (const event of missed) this.take(event); // the answer may be older than they are
    this.changed();
  }

  take(event) {
    this.missed?.push(event);
    if (event.type === "tool_approval_requested") {
      this.items.set(event.data.approval_id, approvalOf(event));
    } else if (event.type === "tool_approval_granted" || event.type === "tool_approval_denied") {
      this.items.delete(event.data.approval_id);
    } else if (RUN_ENDINGS.has(event.type)) {
      for (const [id, item] of this.items) if (item.run_id === event.run_id) this.items.delete(id);
    } else {
      return;
    }
    this.changed();
  }

  async decide(sessionId, id, decision, reason) {
    this.deciding.add(id);
    this.changed();
    try {
      const body = reason ? { decision, reason } : { decision };
      await this.api.post(path("sessions", sessionId, "approvals", id), body);
      this.items.delete(id);
    } catch (problem) {
      this.onProblem(problem);
      if (problem.status === 404 || problem.status === 409) this.load();
    } finally {
      this.deciding.delete(id);
      this.changed();
    }
  }
}

function approvalOf(event) {
  const { data } = event;
  return {
    id: data.approval_id,
    session_id: event.session_id,
    run_id: event.run_id,
    tool_name: data.tool_name,
    input: data.tool_input,
    expires_at: data.expires_at,
  };
}
