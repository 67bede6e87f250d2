// What happened in one session, made of its events: sections (runs, and what belongs to no run) of entries.
// Knows nothing of how it is shown.

import { at, KINDS, newEntry, touch } from "./entry.js";
import { RUN_ENDINGS, SESSION_ENDINGS } from "./event_types.js";
import { addUsage, beginAttempt, closeStreams, newRun, usageOf } from "./run.js";
import { Store } from "./store.js";
import { TAKERS } from "./takers.js";

const SESSION_STATES = new Map([
  ["session_created", "pending"],
  ["session_started", "active"],
  ["session_resumed", "active"],
  ["session_paused", "paused"],
  ["session_completed", "completed"],
  ["session_failed", "failed"],
  ["session_cancelled", "cancelled"],
]);

export class Journal extends Store {
  constructor() {
    super();
    this.startFrom(0);
  }

  /** Forget everything; the next event is the one after `seq`. */
  startFrom(seq) {
    this.lastSeq = seq;
    this.firstSeq = seq + 1;
    this.count = 0;
    this.sections = [];
    this.queued = new Map();
    this.runs = new Map();
    this.tools = new Map();
    this.approvals = new Map();
    this.kindCounts = Object.fromEntries(KINDS.map((kind) => [kind, 0]));
    this.state = null;
    this.hasEnded = false;
    this.changed();
  }

  /** Sections in the order in which they began; runs that have not started come last. */
  ordered() {
    return [...this.sections, ...this.queued.values()];
  }

  /** Take in the event; false if it has been taken in before. */
  add(event) {
    if (event.seq <= this.lastSeq) return false;
    this.lastSeq = event.seq;
    this.count += 1;
    const state = SESSION_STATES.get(event.type);
    if (state) this.state = state;
    if (SESSION_ENDINGS.has(event.type)) this.hasEnded = true;
    const run = event.run_id ? this.runOf(event) : null;
    if (run) this.follow(run, event);
    const take = TAKERS[event.type];
    if (take) take(this, run, event);
    else this.append(run, event, event.type);
    this.changed();
    return true;
  }

  runOf(event) {
    const known = this.runs.get(event.run_id);
    if (known) return known;
    const isQueued = event.type === "run_queued";
    const run = newRun(event, isQueued ? "pending" : "running", this.firstSeq === 1 ? this.runs.size + 1 : null);
    this.runs.set(run.id, run);
    if (isQueued) this.queued.set(run.id, run);
    else this.sections.push(run);
    return run;
  }

  /** What the event changes of its run. */
  follow(run, event) {
    run.version += 1;
    if (event.provider) run.provider = event.provider;
    if (event.type === "run_queued") {
      if ((event.attempt ?? 1) > 1) beginAttempt(run, event);
    } else if (event.type === "run_started") {
      run.status = "running";
      run.startedAt = at(event);
      run.firstStartedAt ??= run.startedAt;
      run.model = event.data.model ?? run.model;
      this.place(run);
    } else if (event.type === "token_usage_updated") {
      run.usage = event.data;
    } else if (event.type === "message_sent" && event.data.role !== "system") {
      run.prompt ??= event.data.content;
    } else if (RUN_ENDINGS.has(event.type)) {
      this.end(run, event);
    }
  }

  /** It waits no more. */
  place(run) {
    if (this.queued.delete(run.id)) this.sections.push(run);
  }

  end(run, event) {
    this.place(run);
    run.status = RUN_ENDINGS.get(event.type);
    run.endedAt = at(event);
    run.model = event.data.model ?? run.model;
    run.stopReason = event.data.stop_reason ?? null;
    run.total = event.data.token_usage ?? null;
    run.cost = event.data.cost_usd ?? null;
    run.error = event.data.error ?? null;
    closeStreams(run);
    for (const entry of run.entries) {
      if (entry.type === "tool" || entry.type === "approval") touch(entry);
    }
  }

  append(run, event, type, more = {}) {
    const entry = newEntry(run, event, type, more);
    for (const kind of entry.kinds) this.kindCounts[kind] += 1;
    this.sectionOf(run, event).entries.push(entry);
    return entry;
  }

  sectionOf(run, event) {
    if (run) return run;
    const last = this.sections.at(-1);
    if (last && last.type === "session") return last;
    const section = { type: "session", key: `session ${event.seq}`, entries: [] };
    this.sections.push(section);
    return section;
  }

  /** Tokens and money of all runs. `isCostKnown` is false where a run used tokens that have no price. */
  totals() {
    const usage = {};
    let cost = 0;
    let isCostKnown = true;
    for (const run of this.runs.values()) {
      const used = usageOf(run);
      addUsage(usage, used);
      if (run.cost != null) cost += run.cost;
      else if (used.total_tokens) isCostKnown = false;
    }
    return { usage, cost, isCostKnown };
  }
}
