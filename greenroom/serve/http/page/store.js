// Something that changes, and those who show it. They hear of it once per frame at most.

import { useEffect, useState } from "./preact.js";

export class Store {
  constructor() {
    this.version = 0;
    this.listeners = new Set();
    this.isPending = false;
  }

  /** Call the listener after each change; gives what ends that. */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  changed() {
    this.version += 1;
    if (this.isPending) return;
    this.isPending = true;
    // A hidden page has no frames.
    if (document.hidden) setTimeout(() => this.notify(), 250);
    else requestAnimationFrame(() => this.notify());
  }

  notify() {
    if (!this.isPending) return;
    this.isPending = false;
    for (const listener of [...this.listeners]) listener();
  }
}

/** Render again when the store changes; gives its version. */
export function useStore(store) {
  const [, render] = useState(0);
  useEffect(() => {
    const listener = () => render((times) => times + 1);
    listener();
    return store.listen(listener);
  }, [store]);
  return store.version;
}

/** Render again every so many milliseconds, while `isOn`; gives the time. */
export function useClock(everyMs, isOn = true) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!isOn) return undefined;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs, isOn]);
  return isOn ? Math.max(now, Date.now() - everyMs) : now;
}
