// The box under the timeline: a message for a new run, or for one that is under way.

import { oneLine } from "./format.js";
import { Icon } from "./icons.js";
import { html, useState } from "./preact.js";
import { hasEnded } from "./session.js";
import { useStore } from "./store.js";

const MOST_LINES = 8;

export function Composer({ open, actions }) {
  useStore(open);
  useStore(open.journal);
  const [text, setText] = useState("");
  const [target, setTarget] = useState(""); // a run to steer; empty: a new one
  const [isBusy, setBusy] = useState(false);
  if (!open.session || hasEnded(open.session)) return null;

  const running = [...open.journal.runs.values()].filter((run) => run.status === "running");
  const steered = running.find((run) => run.id === target) ?? null;
  const send = async (event) => {
    event.preventDefault();
    if (!text.trim() || isBusy) return;
    setBusy(true);
    const isSent = steered ? await actions.steer(steered.id, text) : await actions.submit(text);
    setBusy(false);
    if (isSent) setText("");
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) send(event);
  };
  const lines = Math.min(MOST_LINES, text.split("\n").length);
  return html`<form class="composer" data-testid="composer" onSubmit=${send}>
    <textarea
      id="message"
      rows=${lines}
      placeholder=${steered ? "Steer the run…" : "Start a run…"}
      aria-label=${steered ? "Message for the run" : "Input of a new run"}
      value=${text}
      data-testid="run-input"
      onInput=${(event) => setText(event.target.value)}
      onKeyDown=${onKeyDown}
    ></textarea>
    <div class="composer-foot">
      <label class="unseen" for="target">Where it goes</label>
      <select
        id="target"
        data-testid="run-target"
        value=${steered?.id ?? ""}
        disabled=${!running.length}
        onChange=${(event) => setTarget(event.target.value)}
      >
        <option value="">New run</option>
        ${running.map(
          (run) => html`<option
            key=${run.id}
            value=${run.id}
          >
            Steer ${run.number ? `#${run.number}` : run.id}: ${oneLine(run.prompt ?? "", 40)}
          </option>`,
        )}
      </select>
      <span class="spring"></span>
      <span class="note keys-hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd></span>
      <button type="submit" class="button primary" data-testid="run-submit" disabled=${isBusy || !text.trim()}>
        <${Icon} name=${steered ? "steer" : "play"} />${steered ? "Steer" : "Run"}
      </button>
    </div>
  </form>`;
}
