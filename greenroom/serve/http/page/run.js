// A run as its events have made it.

import { at, touch } from "./entry.js";

const USAGE_FIELDS = ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "total_tokens"];

/** Tokens of all attempts of a run, as far as they are known. */
export function usageOf(run) {
  return run.total ?? addUsage({ ...run.usageBefore }, run.usage);
}

/** A run of which this is the first event that was seen. */
export function newRun(event, status, number) {
  return {
    type: "run",
    key: event.run_id,
    id: event.run_id,
    number,
    status,
    attempt: event.attempt ?? 1,
    provider: event.provider,
    model: null,
    prompt: null,
    queuedAt: at(event),
    startedAt: status === "running" ? at(event) : null,
    firstStartedAt: status === "running" ? at(event) : null,
    endedAt: null,
    usage: {},
    usageBefore: {},
    total: null,
    cost: null,
    error: null,
    stopReason: null,
    entries: [],
    open: new Map(),
    version: 0,
  };
}

/** The attempt before has failed; what it used counts on. */
export function beginAttempt(run, event) {
  run.attempt = event.attempt;
  run.status = "pending";
  addUsage(run.usageBefore, run.usage);
  run.usage = {};
  closeStreams(run);
}

/** What comes next is another message. */
export function closeStreams(run) {
  for (const entry of run.open.values()) {
    entry.isOpen = false;
    touch(entry);
  }
  run.open.clear();
}

/** Add the tokens to the sum, and give it. */
export function addUsage(sum, usage) {
  for (const field of USAGE_FIELDS) if (usage[field] != null) sum[field] = (sum[field] ?? 0) + usage[field];
  return sum;
}
