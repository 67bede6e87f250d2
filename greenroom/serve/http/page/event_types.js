// Types of events that end something, and what they make of it.

export const RUN_ENDINGS = new Map([
  ["run_completed", "completed"],
  ["run_failed", "failed"],
  ["run_cancelled", "cancelled"],
  ["run_timeout", "timeout"],
]);

export const SESSION_ENDINGS = new Set(["session_completed", "session_failed", "session_cancelled"]);
