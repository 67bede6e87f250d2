// The middle of a session's view: its journal as rows, with filters, a search, and the end kept in sight.

import { capital, count, duration, money, oneLine, shortCount, shortId } from "./format.js";
import { Entry } from "./entries.js";
import { Icon } from "./icons.js";
import { isWaiting, KINDS, searchText } from "./entry.js";
import { IconButton, Status } from "./pieces.js";
import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { usageOf } from "./run.js";
import { Scroller } from "./scroller.js";
import { useClock, useStore } from "./store.js";

const ESTIMATES = { said: 90, message_sent: 70, tool: 40, approval: 150, policy_violation: 60, error_occurred: 60 };
const SLIM = 27; // pixels, about
const HEAD = 46;
const SEARCH_AFTER_MS = 150;

/** `desk`: { api, sessionId, approvals, kept, onProblem, runActions }. */
export function Timeline({ open, desk }) {
  useStore(open);
  useStore(open.journal);
  const { journal } = open;
  const [kinds, setKinds] = useState([]);
  const [typed, setTyped] = useState("");
  const query = useDelayed(typed.trim().toLowerCase(), SEARCH_AFTER_MS);
  const [folded, setFolded] = useState(() => new Map());
  const withQuery = useMemo(() => ({ ...desk, query }), [desk, query]);
  const isFiltered = Boolean(kinds.length || query);

  const fold = (runId, isFolded) => setFolded((known) => new Map(known).set(runId, isFolded));
  const foldAll = (isFolded) => setFolded(new Map([...journal.runs.keys()].map((id) => [id, isFolded])));
  const follow = (isOn) => {
    open.isFollowed = isOn;
    open.changed();
  };

  const built = sectionsOf(journal, { kinds, query, folded, fold, isFiltered, desk: withQuery });
  return html`<div class="timeline">
    <${Tools}
      journal=${journal}
      kinds=${kinds}
      setKinds=${setKinds}
      typed=${typed}
      setTyped=${setTyped}
      found=${isFiltered ? built.found : null}
    >
      <${IconButton}
        icon="fold"
        label="Fold or unfold all runs"
        onClick=${() => foldAll(![...folded.values()].some(Boolean))}
      />
      <button
        type="button"
        class="toggle"
        aria-pressed=${String(Boolean(open.isFollowed))}
        data-testid="follow"
        title="Keep to the end (f)"
        onClick=${() => follow(!open.isFollowed)}
      >
        <${Icon} name="follow" />Follow
      </button>
    <//>
    ${
      journal.firstSeq > 1 &&
      html`<p class="cut">
        Events before ${count(journal.firstSeq)} are not shown.
        ${" "}<button type="button" class="link" onClick=${() => open.readFrom(0)}>Read from the beginning</button>
      </p>`
    }
    <${Scroller}
      sections=${built.sections}
      follow=${Boolean(open.isFollowed)}
      onFollow=${follow}
      lastActive=${built.lastActive}
      label="Timeline"
      testid="timeline"
    />
    ${!built.sections.length && html`<p class="empty over">${emptyText(open, isFiltered)}</p>`}
  </div>`;
}

function emptyText(open, isFiltered) {
  if (isFiltered && open.journal.count) return "Nothing matches.";
  return open.streamState === "reconnecting" ? "Reconnecting…" : "Loading events…";
}

function Tools({ journal, kinds, setKinds, typed, setTyped, found, children }) {
  const toggle = (kind) => setKinds(kinds.includes(kind) ? kinds.filter((one) => one !== kind) : [...kinds, kind]);
  return html`<div class="tools" role="group" aria-label="Timeline tools">
    <div class="kinds" role="group" aria-label="Show only">
      ${KINDS.filter((kind) => journal.kindCounts[kind] || kinds.includes(kind)).map(
        (kind) => html`<button
          type="button"
          class="chip"
          key=${kind}
          data-kind=${kind}
          aria-pressed=${String(kinds.includes(kind))}
          onClick=${() => toggle(kind)}
        >
          ${capital(kind)}<span class="chip-count">${shortCount(journal.kindCounts[kind])}</span>
        </button>`,
      )}
    </div>
    <div class="controls">
      ${found !== null && html`<span class="found" role="status">${count(found)} found</span>`}
      <label class="search small">
        <${Icon} name="search" />
        <input
          type="search"
          id="search-session"
          placeholder="Search"
          aria-label="Search this session"
          value=${typed}
          onInput=${(event) => setTyped(event.target.value)}
        />
        <kbd>s</kbd>
      </label>
      ${children}
    </div>
  </div>`;
}

/** The sections for the scroller, which one is to be kept in sight, and how many entries were found. */
function sectionsOf(journal, given) {
  const sections = [];
  let lastActive = null;
  let found = 0;
  for (const section of journal.ordered()) {
    const entries = given.isFiltered ? section.entries.filter((entry) => isWanted(entry, given)) : section.entries;
    if (!entries.length) continue;
    found += entries.length;
    const isRun = section.type === "run";
    sections.push(isRun ? runSection(section, entries, given) : looseSection(section, entries, given));
    if (!journal.queued.has(section.key)) lastActive = section.key;
  }
  return { sections, found, lastActive: journal.queued.size ? lastActive : null };
}

function isWanted(entry, { kinds, query }) {
  if (kinds.length && !entry.kinds.some((kind) => kinds.includes(kind))) return false;
  return !query || searchText(entry).includes(query);
}

function looseSection(section, entries, { desk }) {
  return { key: section.key, attributes: null, rows: entries.map((entry) => entryRow(entry, desk)) };
}

function runSection(run, entries, { folded, fold, isFiltered, desk }) {
  // Queued runs are folded until they start, and everything is open where it was searched for.
  const isFolded = !isFiltered && (folded.get(run.id) ?? run.startedAt === null) && !hasQuestion(run);
  const attributes = {
    class: "run",
    role: "group",
    "data-testid": "run",
    "data-run-id": run.id,
    "data-status": run.status,
    "aria-label": `Run ${run.number ?? run.id}`,
  };
  const head = {
    key: `head ${run.id}`,
    token: `${run.version} ${isFolded}`,
    kind: "head",
    estimate: HEAD,
    view: () =>
      html`<${RunHead}
        run=${run}
        isFolded=${isFolded}
        onFold=${() => fold(run.id, !isFolded)}
        actions=${desk.runActions}
      />`,
  };
  const rows = isFolded ? [] : entries.map((entry) => entryRow(entry, desk));
  return { key: run.id, attributes, rows: [head, ...rows] };
}

function hasQuestion(run) {
  return run.endedAt === null && run.entries.some((entry) => entry.type === "approval" && isWaiting(entry));
}

function entryRow(entry, desk) {
  return {
    key: entry.key,
    token: `${entry.version} ${desk.query} ${entry.run?.endedAt ?? ""}`,
    estimate: ESTIMATES[entry.type] ?? SLIM,
    view: () => html`<${Entry} entry=${entry} desk=${desk} version=${entry.version} />`,
  };
}

function RunHead({ run, isFolded, onFold, actions }) {
  const usage = usageOf(run);
  return html`<header class="run-head">
    <h2><button type="button" class="run-title" aria-expanded=${String(!isFolded)} onClick=${onFold}>
      <${Icon} name="chevron" />
      <${Status} state=${run.status} text=${run.status === "pending" ? "queued" : run.status} />
      <span class="run-number">${run.number ? `#${run.number}` : shortId(run.id)}</span>
      <span class="preview">${oneLine(run.prompt ?? "", 120)}</span>
    </button></h2>
    <span class="run-facts">
      ${run.attempt > 1 && html`<span class="badge" data-tone="warn">attempt ${run.attempt}</span>`}
      <span
        class="run-provider"
        title=${run.model ?? ""}
      >
        ${[run.provider, run.model].filter(Boolean).join(" · ")}
      </span>
      ${
        usage.total_tokens > 0 &&
        html`<span title=${`${count(usage.total_tokens)} tokens`}>${shortCount(usage.total_tokens)} tok</span>`
      }
      ${run.cost != null && html`<span>${money(run.cost)}</span>`}
      <${RunTime} run=${run} />
    </span>
    ${run.endedAt === null && html`<${RunActions} run=${run} actions=${actions} />`}
  </header>`;
}

function RunActions({ run, actions }) {
  return html`<span class="run-actions">
    ${
      run.status === "running" &&
      html`<${IconButton}
        icon="pause"
        label="Interrupt run"
        onClick=${() => actions.interrupt(run.id)}
      />`
    }
    <${IconButton} icon="stop" label="Cancel run" onClick=${() => actions.cancel(run.id)} />
  </span>`;
}

function RunTime({ run }) {
  const now = useClock(500, run.endedAt === null);
  const { queuedAt, firstStartedAt, endedAt } = run;
  if (firstStartedAt === null) return html`<span class="time">waits ${duration((endedAt ?? now) - queuedAt)}</span>`;
  const title = `Queued for ${duration(firstStartedAt - queuedAt)}`;
  return html`<span class="time" title=${title}>${duration((endedAt ?? now) - firstStartedAt)}</span>`;
}

/** The value, once it has not changed for a while. */
function useDelayed(value, ms) {
  const [delayed, setDelayed] = useState(value);
  const timer = useRef(null);
  useEffect(() => {
    timer.current = setTimeout(() => setDelayed(value), ms);
    return () => clearTimeout(timer.current);
  }, [value, ms]);
  return delayed;
}
