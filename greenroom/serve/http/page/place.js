// Where the reader is, kept in the fragment of the address.

import { useEffect, useState } from "./preact.js";

export const addressOf = {
  sessions: () => "#/sessions",
  session: (id) => `#/sessions/${encodeURIComponent(id)}`,
  providers: () => "#/providers",
  approvals: () => "#/approvals",
};

const VIEWS = ["sessions", "providers", "approvals"];

/** { view, sessionId } of a fragment; the list of sessions for what is no place. */
function placeOf(fragment) {
  const [view, id] = fragment.replace(/^#\/?/, "").split("/");
  if (!VIEWS.includes(view)) return { view: "sessions", sessionId: null };
  return { view, sessionId: view === "sessions" && id ? decoded(id) : null };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function go(address) {
  window.location.hash = address;
}

export function usePlace() {
  const [place, setPlace] = useState(placeOf(window.location.hash));
  useEffect(() => {
    const moved = () => setPlace(placeOf(window.location.hash));
    window.addEventListener("hashchange", moved);
    return () => window.removeEventListener("hashchange", moved);
  }, []);
  return place;
}
