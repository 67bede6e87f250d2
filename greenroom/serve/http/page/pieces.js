// Small parts that all views use.

import { age, fullTime, words } from "./format.js";
import { Icon } from "./icons.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { useClock } from "./store.js";

const COPIED_MS = 1_500;

/** A dot and a word: never the colour alone. */
export function Status({ state, text = words(state), quiet = false }) {
  return html`<span class="status" data-state=${state}>
    <i class="dot"></i><span class=${quiet ? "unseen" : ""}>${text}</span>
  </span>`;
}

/** How long ago, kept up to date. */
export function Age({ of, label = "" }) {
  const now = useClock(10_000);
  return html`<time datetime=${of} title=${`${label} ${fullTime(of)}`.trim()}>${age(of, now)}</time>`;
}

export function IconButton({ icon, label, onClick, disabled = false, ...more }) {
  return html`<button
    type="button"
    class="icon-button"
    aria-label=${label}
    title=${label}
    onClick=${onClick}
    disabled=${disabled}
    ...${more}
  >
    <${Icon} name=${icon} />
  </button>`;
}

/** An id that is copied with a click. */
export function CopyButton({ text, label }) {
  const [isCopied, setCopied] = useState(false);
  const timer = useRef(null);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      return; // not allowed here; the text can be selected
    }
    setCopied(true);
    timer.current = setTimeout(() => setCopied(false), COPIED_MS);
  };
  return html`<${IconButton}
    icon=${isCopied ? "approve" : "copy"}
    label=${isCopied ? "Copied" : label}
    onClick=${copy}
  />`;
}

/** What has to be read and sent away again. */
export function Notices({ notices, onDismiss }) {
  return html`<div class="notices" role="region" aria-label="Notices" aria-live="assertive">
    ${notices.map(
      (notice) => html`<div class="notice" key=${notice.id} role="alert" data-testid="notice">
        <${Icon} name="warn" />
        <p>${notice.text}</p>
        <${IconButton} icon="close" label="Dismiss" onClick=${() => onDismiss(notice.id)} />
      </div>`,
    )}
  </div>`;
}

/** A modal dialog; the browser keeps the focus in it, and closes it with Escape. */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  const onBackdrop = (event) => {
    if (event.target === dialog.current) onClose();
  };
  return html`<dialog ref=${dialog} onClose=${onClose} onClick=${onBackdrop} aria-labelledby="dialog-title">
    <div class="dialog">
      <header>
        <h2 id="dialog-title">${title}</h2>
        <${IconButton} icon="close" label="Close" onClick=${onClose} />
      </header>
      ${children}
    </div>
  </dialog>`;
}

/** A question before something that cannot be taken back. */
export function Confirm({ title, text, action, onConfirm, onClose }) {
  const confirm = () => {
    onClose();
    onConfirm();
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <p>${text}</p>
    <footer>
      <button type="button" class="button" onClick=${onClose}>Keep</button>
      <button type="button" class="button danger" data-testid="confirm" onClick=${confirm}>${action}</button>
    </footer>
  <//>`;
}

/** The state of what opens and folds, kept by key for rows that come and go. */
export function useKept(kept, key, initial) {
  const [value, setValue] = useState(kept.has(key) ? kept.get(key) : initial);
  const set = (next) => {
    kept.set(key, next);
    setValue(next);
  };
  return [value, set];
}
