// How the entries of a session's journal look: one view for each type, and a line for what has none.

import { Diff } from "./diff.js";
import { asText, count, duration, money, plural, words } from "./format.js";
import { Frame, Line } from "./entry_frame.js";
import { Icon } from "./icons.js";
import { SaidEntry, SentEntry, SteeredEntry } from "./message_entries.js";
import { useKept } from "./pieces.js";
import { html } from "./preact.js";
import { marked } from "./prose.js";
import { ApprovalEntry, ToolEntry } from "./tool_entries.js";

export function Entry({ entry, desk }) {
  const View = VIEWS[entry.type] ?? PlainEntry;
  return html`<${View} entry=${entry} desk=${desk} />`;
}

function UsageEntry({ entry, desk }) {
  const { data } = entry.events[0];
  const parts = [
    [data.input_tokens, "in"],
    [data.output_tokens, "out"],
    [data.cache_read_tokens, "from cache"],
    [data.cache_write_tokens, "to cache"],
  ];
  const told = parts.filter(([number]) => number).map(([number, name]) => `${count(number)} ${name}`);
  return html`<${Line} entry=${entry} desk=${desk} icon="gauge" title="Tokens">${told.join(" · ") || "none"}<//>`;
}

function TurnEntry({ entry, desk }) {
  const { turn, stop_reason: reason } = entry.events[0].data;
  return html`<${Line} entry=${entry} desk=${desk} icon="dot" title=${`Turn ${turn ?? ""}`}>${words(reason)}<//>`;
}

function PolicyEntry({ entry, desk }) {
  const { data } = entry.events[0];
  const isStop = data.action === "cancel";
  return html`<${Frame} entry=${entry} desk=${desk} icon="shield" tone=${isStop ? "bad" : "warn"}>
    <h3 class="who">Policy ${data.policy} <span
      class="badge"
      data-tone=${isStop ? "bad" : "warn"}
    >${words(data.action)}</span></h3>
    <p>${policyText(data)}${data.advisory && " The provider may have run it before it asked."}</p>
  <//>`;
}

function policyText(data) {
  if (data.kind === "tool_denied") return `The tool ${data.tool_name} is not allowed (${asText(data.rule)}).`;
  if (data.metric) return `${words(data.metric)}: ${data.actual} of ${data.limit}.`;
  const rule = data.rule && typeof data.rule === "object" ? Object.entries(data.rule) : [];
  const caps = rule.filter(([, value]) => value !== null).map(([name, value]) => `${words(name)} ${value}`);
  return `${words(data.kind)}${caps.length ? `: ${caps.join(", ")}` : ""}.`;
}

function SelectedEntry({ entry, desk }) {
  const { provider, router, candidates = [], waited_s: waited } = entry.events[0].data;
  const more = [
    `of ${candidates.length ? candidates.join(", ") : "none"}`,
    router && `by router ${router}`,
    waited > 0 && `after ${duration(waited * 1000)}`,
  ];
  return html`<${Line}
    entry=${entry}
    desk=${desk}
    icon="route"
    title=${`Provider ${provider ?? ""}`}
  >
    ${more.filter(Boolean).join(" · ")}
  <//>`;
}

function FailedOverEntry({ entry, desk }) {
  const { from, to, error_code: code } = entry.events[0].data;
  return html`<${Frame} entry=${entry} desk=${desk} icon="route" tone="warn">
    <h3 class="who">Failed over</h3>
    <p class="route"><code>${from}</code><${Icon}
      name="arrow"
    /><code>${to}</code>${code && html`<span class="badge" data-tone="bad">${words(code)}</span>`}</p>
  <//>`;
}

function ErrorEntry({ entry, desk }) {
  const { data } = entry.events[0];
  const next = data.recourse && `${words(data.recourse)}${data.delay_s ? ` in ${duration(data.delay_s * 1000)}` : ""}`;
  return html`<${Frame} entry=${entry} desk=${desk} icon="warn" tone=${data.retryable ? "warn" : "bad"}>
    <h3 class="who">${words(data.error_code ?? "error")} ${next && html`<span class="note">${next}</span>`}</h3>
    <p>${marked(asText(data.error_message ?? ""), desk.query)}</p>
  <//>`;
}

function RecoveredEntry({ entry, desk }) {
  const { provider, waited_s: waited } = entry.events[0].data;
  const told = [provider, waited != null && `after ${duration(waited * 1000)}`].filter(Boolean).join(" · ");
  return html`<${Line} entry=${entry} desk=${desk} icon="approve" title="Recovered" tone="good">${told}<//>`;
}

function SnapshotEntry({ entry, desk }) {
  const { label, ref, backend } = entry.events[0].data;
  return html`<${Line}
    entry=${entry}
    desk=${desk}
    icon="diff"
    title="Workspace snapshot"
  >
    ${[label, backend, ref].filter(Boolean).join(" · ")}
  <//>`;
}

function DiffEntry({ entry, desk }) {
  const [isOpen, setOpen] = useKept(desk.kept, `open ${entry.key}`, false);
  const { data } = entry.events[0];
  const patch = [data.patch, data.diff].find((text) => typeof text === "string" && text);
  return html`<${Frame} entry=${entry} desk=${desk} icon="diff">
    <div class="tool-head">
      <button
        type="button"
        class="fold"
        aria-expanded=${String(isOpen)}
        disabled=${!patch}
        onClick=${() => setOpen(!isOpen)}
      >
        ${patch && html`<${Icon} name="chevron" />`}<span class="who">Workspace changed</span>
        <span class="preview">${plural(data.files_changed ?? 0, "file")}</span>
      </button>
      <span class="changed">
        <b data-line="added">+${count(data.insertions ?? 0)}</b>
        <b data-line="removed">−${count(data.deletions ?? 0)}</b>
      </span>
    </div>
    ${isOpen && patch && html`<${Diff} text=${patch} />`}
  <//>`;
}

const PLAIN = {
  run_queued: ["clock", "Queued"],
  run_started: ["play", "Started"],
  run_completed: ["approve", "Completed", "good"],
  run_failed: ["cross", "Failed", "bad"],
  run_cancelled: ["stop", "Cancelled", "warn"],
  run_timeout: ["clock", "Ran out of time", "bad"],
  session_created: ["plus", "Session created"],
  session_started: ["play", "Session started"],
  session_paused: ["pause", "Session paused", "warn"],
  session_resumed: ["play", "Session resumed"],
  session_completed: ["approve", "Session completed", "good"],
  session_failed: ["cross", "Session failed", "bad"],
  session_cancelled: ["stop", "Session cancelled", "warn"],
  workspace_rolled_back: ["back", "Workspace rolled back", "warn"],
};

const TOLD = {
  run_queued: (data, event) => [event.attempt > 1 && `attempt ${event.attempt}`, data.reason],
  run_started: (data, event) => [event.attempt > 1 && `attempt ${event.attempt}`, event.provider, data.model],
  run_completed: (data) => [
    words(data.stop_reason),
    data.turn_count && plural(data.turn_count, "turn"),
    tokens(data),
    money(data.cost_usd),
  ],
  run_failed: (data) => [words(data.error_code), data.error_message],
  run_cancelled: (data) => [data.reason, tokens(data), money(data.cost_usd)],
  run_timeout: (data) => [data.deadline_s && `deadline ${data.deadline_s} s`, tokens(data)],
  session_created: (data) => [data.agent_id, data.provider],
  session_paused: (data) => [data.reason],
  session_failed: (data) => [words(data.error_code), data.error_message],
};

function tokens(data) {
  const total = data.token_usage?.total_tokens;
  return total ? `${count(total)} tokens` : "";
}

function PlainEntry({ entry, desk }) {
  const [event] = entry.events;
  const [icon, title, tone] = PLAIN[event.type] ?? ["dot", words(event.type)];
  const told = (TOLD[event.type]?.(event.data, event) ?? []).filter(Boolean).join(" · ");
  return html`<${Line}
    entry=${entry}
    desk=${desk}
    icon=${icon}
    title=${title}
    tone=${tone}
  >
    ${marked(told, desk.query)}
  <//>`;
}

const VIEWS = {
  said: SaidEntry,
  message_sent: SentEntry,
  session_steered: SteeredEntry,
  tool: ToolEntry,
  approval: ApprovalEntry,
  token_usage_updated: UsageEntry,
  turn_completed: TurnEntry,
  policy_violation: PolicyEntry,
  provider_selected: SelectedEntry,
  provider_failed_over: FailedOverEntry,
  error_occurred: ErrorEntry,
  error_recovered: RecoveredEntry,
  workspace_snapshot_taken: SnapshotEntry,
  workspace_diff_computed: DiffEntry,
};
