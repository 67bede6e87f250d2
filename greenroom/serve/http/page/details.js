// The right side of a session's view: its facts, what it is doing, and what can be done with it.

import { addressOf } from "./place.js";
import { bytes, count, duration, money, plural, shortId, shortTime, words } from "./format.js";
import { Icon } from "./icons.js";
import { Json } from "./json.js";
import { Age, Confirm, CopyButton, IconButton, Status } from "./pieces.js";
import { html, useState } from "./preact.js";
import { hasEnded } from "./session.js";
import { useStore } from "./store.js";

export function Details({ open, actions }) {
  useStore(open);
  useStore(open.journal);
  const { session, status, journal } = open;
  if (!session) return null;
  return html`<aside class="details" aria-label="Session details">
    <${Actions} session=${session} actions=${actions} />
    <${Slots} session=${session} status=${status} journal=${journal} actions=${actions} />
    <${Totals} journal=${journal} budget=${session.budget} />
    <${Facts} session=${session} status=${status} />
    <${Processes} processes=${status?.processes ?? []} />
    ${session.error && html`<${Folded} title="Error" value=${session.error} isOpen=${true} />`}
    <${Folded} title="Context" value=${session.context} />
    <${Folded} title="Metadata" value=${session.metadata} />
    <${Folded} title="Run defaults" value=${session.run_defaults} />
    <${Folded} title="Raw session" value=${session} isSmall=${true} />
  </aside>`;
}

function Actions({ session, actions }) {
  const [asked, setAsked] = useState(null);
  if (hasEnded(session)) return null;
  const isPaused = session.status === "paused";
  return html`<div class="actions">
    ${
      isPaused
        ? html`<button
          type="button"
          class="button"
          data-testid="resume"
          onClick=${() => actions.session("resume")}
        >
          <${Icon} name="play" />Resume
        </button>`
        : html`<button
          type="button"
          class="button"
          data-testid="pause"
          onClick=${() => actions.session("pause")}
        >
          <${Icon} name="pause" />Pause
        </button>`
    }
    <button
      type="button"
      class="button"
      data-testid="complete"
      onClick=${() => setAsked("complete")}
    >
      <${Icon} name="approve" />Complete
    </button>
    <button
      type="button"
      class="button danger"
      data-testid="cancel"
      onClick=${() => setAsked("cancel")}
    >
      <${Icon} name="stop" />Cancel
    </button>
    ${
      asked &&
      html`<${Confirm}
        ...${QUESTIONS[asked]}
        onConfirm=${() => actions.session(asked)}
        onClose=${() => setAsked(null)}
      />`
    }
  </div>`;
}

const QUESTIONS = {
  cancel: {
    title: "Cancel this session?",
    text: "Its runs are cancelled, those under way too, and it takes no more.",
    action: "Cancel the session",
  },
  complete: {
    title: "Complete this session?",
    text: "It takes no more runs. All of its runs must have ended.",
    action: "Complete the session",
  },
};

function Slots({ session, status, journal, actions }) {
  if (hasEnded(session)) return null;
  const inFlight = status?.in_flight ?? runsOf(journal, "running");
  const queued = status?.queued ?? runsOf(journal, "pending");
  return html`<section class="facts">
    <h2>Slots <span class="note">${inFlight.length} of ${session.max_concurrent_runs} in use</span></h2>
    <div class="slots" aria-hidden="true">
      ${Array.from(
        { length: Math.min(session.max_concurrent_runs, 24) },
        (_, place) => html`<i
          key=${place}
          data-full=${String(place < inFlight.length)}
        ></i>`,
      )}
    </div>
    <ul class="runs" aria-label="Runs under way">
      ${inFlight.map(
        (id) => html`<${RunLine}
          key=${id}
          id=${id}
          journal=${journal}
          actions=${actions}
          isRunning=${true}
        />`,
      )}
    </ul>
    <h2>Queue <span class="note">${queued.length} of ${session.max_queued_runs}</span></h2>
    <ol class="runs" aria-label="Queued runs, in order">
      ${queued.slice(0, 20).map(
        (id) => html`<${RunLine}
          key=${id}
          id=${id}
          journal=${journal}
          actions=${actions}
          waits=${status?.waiting?.[id]}
        />`,
      )}
    </ol>
    ${queued.length > 20 && html`<p class="note">and ${plural(queued.length - 20, "more run")}</p>`}
    ${status?.draining && html`<p class="note">It drains: it takes no new runs.</p>`}
  </section>`;
}

function runsOf(journal, status) {
  return [...journal.runs.values()].filter((run) => run.status === status).map((run) => run.id);
}

function RunLine({ id, journal, actions, isRunning = false, waits }) {
  const run = journal.runs.get(id);
  return html`<li>
    <span class="run-number">${run?.number ? `#${run.number}` : ""}</span>
    <span class="preview" title=${id}>${run?.prompt || shortId(id)}</span>
    ${waits && html`<span class="note">${waitText(waits)}</span>`}
    ${isRunning && html`<${IconButton} icon="pause" label="Interrupt run" onClick=${() => actions.interrupt(id)} />`}
    <${IconButton} icon="stop" label="Cancel run" onClick=${() => actions.cancel(id)} />
  </li>`;
}

function waitText(waits) {
  const again = waits.retry_in_s != null ? `, again in ${duration(waits.retry_in_s * 1000)}` : "";
  return `${waits.provider}: ${words(waits.reason)}${again}`;
}

function Totals({ journal, budget }) {
  const { usage, cost, isCostKnown } = journal.totals();
  const rows = [
    ["Input", shown(usage.input_tokens)],
    ["Output", shown(usage.output_tokens)],
    ["From cache", shown(usage.cache_read_tokens)],
    ["To cache", shown(usage.cache_write_tokens)],
    ["Budget", limit(budget, money(budget?.max_cost_usd))],
    ["Token budget", limit(budget, count(budget?.max_total_tokens))],
  ];
  return html`<section class="facts">
    <h2>Usage ${journal.firstSeq > 1 && html`<span class="note">of what is shown</span>`}</h2>
    <div class="sums">
      <div><b>${count(usage.total_tokens ?? 0)}</b><span>tokens</span></div>
      <div><b>${cost || isCostKnown ? money(cost) : "—"}</b><span>${isCostKnown ? "cost" : "known cost"}</span></div>
      <div><b>${count(journal.runs.size)}</b><span>${journal.runs.size === 1 ? "run" : "runs"}</span></div>
    </div>
    <dl>
      ${rows.filter(([, value]) => value).map(([name, value]) => html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}
    </dl>
  </section>`;
}

function shown(number) {
  return number ? count(number) : "";
}

function limit(budget, most) {
  return most && `${most}, then ${words(budget.on_violation)}`;
}

function Facts({ session, status }) {
  return html`<section class="facts">
    <h2>Session</h2>
    <dl>
      <dt>Status</dt><dd><${Status}
        state=${session.status}
      />${session.pause_reason && html`<span class="note">${session.pause_reason}</span>`}</dd>
      <dt>Id</dt><dd class="copied"><code title=${session.id}>${shortId(session.id)}</code><${CopyButton}
        text=${session.id}
        label="Copy id"
      /></dd>
      <dt>Agent</dt><dd>${session.agent_id}</dd>
      <dt>Provider</dt><dd>${session.provider}</dd>
      <dt>Created</dt><dd><${Age}
        of=${session.created_at}
        label="Created"
      /> <span class="note">${shortTime(session.created_at)}</span></dd>
      <dt>Changed</dt><dd><${Age} of=${session.updated_at} label="Changed" /></dd>
      <dt>Epoch</dt><dd>${status?.epoch ?? session.epoch}</dd>
      ${status && html`<dt>Subscribers</dt><dd>${status.subscribers}</dd>`}
      ${
        session.parent_session_id &&
        html`<dt>Parent</dt>
          <dd><a href=${addressOf.session(session.parent_session_id)}>${shortId(session.parent_session_id)}</a></dd>`
      }
    </dl>
    ${session.tags?.length > 0 && html`<${Tags} tags=${session.tags} />`}
  </section>`;
}

function Tags({ tags }) {
  return html`<ul class="tags" aria-label="Tags">${tags.map((tag) => html`<li key=${tag}>${tag}</li>`)}</ul>`;
}

function Processes({ processes }) {
  if (!processes.length) return null;
  return html`<section class="facts">
    <h2>Processes</h2>
    <dl>
      ${processes.map(
        (one) =>
          html`<dt key=${one.pid}>pid ${one.pid}</dt>
            <dd>${count(one.count ?? 1)} in its tree, ${bytes(one.memory_bytes ?? 0)}</dd>`,
      )}
    </dl>
  </section>`;
}

function Folded({ title, value, isOpen = false, isSmall = false }) {
  const [shows, setShows] = useState(isOpen);
  const size = value ? Object.keys(value).length : 0;
  if (!size) return null;
  return html`<section class="facts">
    <h2>
      <button type="button" class="fold" aria-expanded=${String(shows)} onClick=${() => setShows(!shows)}>
        <${Icon} name="chevron" />${title} ${!isSmall && html`<span class="note">${count(size)}</span>`}
      </button>
    </h2>
    ${shows && html`<${Json} value=${value} />`}
  </section>`;
}
