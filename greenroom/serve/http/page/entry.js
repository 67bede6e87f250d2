// One entry of a session's journal: an event, or a few that belong together.

/** The kinds that a reader may choose from, in the order in which they are offered. */
export const KINDS = ["messages", "tools", "usage", "policy", "errors", "workspace", "lifecycle"];

const KINDS_OF = {
  message_sent: ["messages"],
  session_steered: ["messages"],
  token_usage_updated: ["usage"],
  turn_completed: ["usage"],
  policy_violation: ["policy"],
  error_occurred: ["errors"],
  error_recovered: ["errors"],
  workspace_snapshot_taken: ["workspace"],
  workspace_diff_computed: ["workspace"],
  workspace_rolled_back: ["workspace"],
  provider_failed_over: ["lifecycle", "errors"],
  run_failed: ["lifecycle", "errors"],
  run_timeout: ["lifecycle", "errors"],
  session_failed: ["lifecycle", "errors"],
};

/** An entry of one event; those of some types take in more. */
export function newEntry(run, event, type, more) {
  return {
    key: `${event.seq}`,
    type,
    seq: event.seq,
    at: at(event),
    run,
    events: [event],
    version: 0,
    kinds: KINDS_OF[event.type] ?? ["lifecycle"],
    ...more,
  };
}

/** What the filter's text is held against, in lower case. */
export function searchText(entry) {
  if (entry.searchVersion !== entry.version) {
    entry.searchVersion = entry.version;
    const parts = entry.events.map((event) => `${event.type} ${JSON.stringify(event.data)}`);
    entry.searched = `${entry.text ?? ""}\n${parts.join("\n")}`.toLowerCase();
  }
  return entry.searched;
}

/** Whether a person is still to decide. */
export function isWaiting(entry) {
  return !entry.decision && entry.run?.endedAt == null;
}

/** When it happened, in milliseconds. */
export function at(event) {
  return Date.parse(event.timestamp);
}

/** It has changed, and is to be shown anew. */
export function touch(entry) {
  entry.version += 1;
}
