// The form that takes the key. It is tried before it is kept.

import { Api } from "./api.js";
import { html, useState } from "./preact.js";
import { ThemeSwitch } from "./theme_switch.js";

export function SignIn({ refusal, onKey }) {
  const [key, setKey] = useState("");
  const [error, setError] = useState(refusal);
  const [isBusy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const given = key.trim();
    if (!given) return;
    setBusy(true);
    try {
      await new Api(given).get("sessions", { limit: 1 });
      onKey(given);
    } catch (problem) {
      setError(problem.status === 401 ? "This key is not valid." : problem.message);
      setBusy(false);
    }
  };
  return html`<main class="sign-in">
    <form onSubmit=${submit}>
      <img src="assets/icon.svg" alt="" width="44" height="44" />
      <h1>Greenroom</h1>
      <p>Give a key of this service to see what its agents do.</p>
      <label for="key">Key</label>
      <input
        id="key"
        type="password"
        required
        autocomplete="off"
        spellcheck=${false}
        value=${key}
        aria-describedby="key-note"
        onInput=${(event) => setKey(event.target.value)}
        ref=${focusOnce}
      />
      ${error && html`<p class="failure" role="alert">${error}</p>`}
      <button
        type="submit"
        class="button primary"
        data-testid="sign-in"
        disabled=${isBusy}
      >
        ${isBusy ? "Signing in…" : "Sign in"}
      </button>
      <p
        class="note"
        id="key-note"
      >
        <code>greenroom keys create --tenant T</code> makes one. It is kept in this tab until you sign out or close it.
      </p>
    </form>
    <div class="corner"><${ThemeSwitch} /></div>
  </main>`;
}

function focusOnce(element) {
  if (element && !element.dataset.wasFocused) {
    element.dataset.wasFocused = "true";
    element.focus();
  }
}
