// How events enter a journal that share an entry with others: streamed messages, tool calls, approvals.

import { touch } from "./entry.js";
import { closeStreams } from "./run.js";

/** By type of event: (journal, run, event). */
export const TAKERS = {
  message_streamed: takePiece,
  message_received: takeWhole,
  tool_call_started: takeCall,
  tool_call_completed: takeCallEnd,
  tool_call_failed: takeCallEnd,
  tool_approval_requested: takeRequest,
  tool_approval_granted: takeDecision,
  tool_approval_denied: takeDecision,
};

function takePiece(journal, run, event) {
  const kind = event.data.kind ?? "text";
  const piece = String(event.data.content ?? "");
  let entry = run?.open.get(kind);
  if (!entry) {
    if (run) closeStreams(run);
    entry = journal.append(run, event, "said", { ...said(event, kind), events: [], pieces: 0, isOpen: Boolean(run) });
    run?.open.set(kind, entry);
  }
  entry.text += piece;
  entry.pieces += 1;
  entry.lastSeq = event.seq;
  touch(entry);
}

/** The whole message; what was streamed of it is in the same entry. */
function takeWhole(journal, run, event) {
  const kind = event.data.kind ?? "text";
  const text = contentOf(event);
  const streamed = run && streamedEntry(run, kind, text, event.attempt);
  if (!streamed) {
    journal.append(run, event, "said", { ...said(event, kind), text, pieces: 0, received: event });
    return;
  }
  Object.assign(streamed, { text, received: event, isOpen: false, events: [event] });
  if (run.open.get(kind) === streamed) run.open.delete(kind);
  touch(streamed);
}

function streamedEntry(run, kind, text, attempt) {
  for (let place = run.entries.length - 1; place >= 0; place -= 1) {
    const entry = run.entries[place];
    if (entry.attempt !== undefined && entry.attempt !== attempt) break;
    if (entry.type === "said" && entry.kind === kind && !entry.received && entry.text === text) return entry;
  }
  return run.open.get(kind) ?? null;
}

function said(event, kind) {
  return { kind, role: event.data.role ?? "assistant", text: "", kinds: ["messages"], attempt: event.attempt };
}

function takeCall(journal, run, event) {
  if (run) closeStreams(run);
  const more = { kinds: ["tools"], started: event, ended: null, name: event.data.tool_name };
  journal.tools.set(callKey(event), journal.append(run, event, "tool", more));
}

function takeCallEnd(journal, run, event) {
  const key = callKey(event);
  let entry = journal.tools.get(key);
  journal.tools.delete(key);
  if (entry) entry.events.push(event);
  else entry = journal.append(run, event, "tool", { kinds: ["tools"], started: null, name: event.data.tool_name });
  entry.ended = event;
  if (event.type === "tool_call_failed") {
    entry.kinds = ["tools", "errors"];
    journal.kindCounts.errors += 1;
  }
  touch(entry);
}

function callKey(event) {
  return `${event.run_id} ${event.attempt} ${event.data.tool_call_id}`;
}

function takeRequest(journal, run, event) {
  const entry = journal.append(run, event, "approval", { kinds: ["tools"], request: event, decision: null });
  journal.approvals.set(event.data.approval_id, entry);
  const tool = journal.tools.get(callKey(event));
  if (!tool) return;
  tool.approval = entry;
  touch(tool);
}

function takeDecision(journal, run, event) {
  const entry = journal.approvals.get(event.data.approval_id);
  if (!entry || entry.decision) {
    journal.append(run, event, event.type, { kinds: ["tools"] });
    return;
  }
  entry.decision = event;
  entry.events.push(event);
  touch(entry);
  const tool = journal.tools.get(callKey(entry.request));
  if (tool) touch(tool);
}

function contentOf(event) {
  const content = event.data.content ?? "";
  return typeof content === "string" ? content : JSON.stringify(content, null, 2);
}
