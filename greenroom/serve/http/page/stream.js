// Server-sent events over fetch: EventSource cannot send the key in a header.

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 15_000;
const SILENCE_MS = 45_000; // three heartbeats
const HIDDEN_MS = 60_000;
const CURSOR_FAULTS = ["resync_required", "invalid_cursor"];
const LARGEST_MESSAGE = 16_000_000; // characters

/** Cuts the text of a stream into messages { id, event, data }, wherever its pieces are cut. */
export class SseParser {
  constructor() {
    this.rest = "";
    this.clear();
  }

  clear() {
    this.id = null;
    this.event = "message";
    this.lines = [];
  }

  /** The messages that the piece completes. */
  push(piece) {
    const messages = [];
    const text = this.rest + piece;
    let start = 0;
    for (;;) {
      const end = nextLineEnd(text, start);
      // A carriage return at the very end may be half of a line end.
      if (end === -1 || (text[end] === "\r" && end === text.length - 1)) break;
      this.takeLine(text.slice(start, end), messages);
      start = text[end] === "\r" && text[end + 1] === "\n" ? end + 2 : end + 1;
    }
    this.rest = text.slice(start);
    if (this.rest.length > LARGEST_MESSAGE) throw new Error("A message of the stream is too long.");
    return messages;
  }

  takeLine(line, messages) {
    if (line === "") {
      if (this.lines.length) messages.push({ id: this.id, event: this.event, data: this.lines.join("\n") });
      this.clear();
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const name = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.lines.push(value);
    else if (name === "event") this.event = value;
    else if (name === "id" && !value.includes("\0")) this.id = value;
  }
}

function nextLineEnd(text, from) {
  const end = /[\r\n]/g;
  end.lastIndex = from;
  return end.exec(text)?.index ?? -1;
}

/**
 * One stream, taken up again where it broke until it is closed. It rests while the page has been hidden for a minute:
 * a browser has few connections to one host, and other tabs need them.
 *
 * handlers: onMessages(messages), onState("live" | "reconnecting" | "off"), onOpen(), onProblem(problem).
 * onMessages answers what is to come of the stream: nothing (it goes on), "end" (it is over), "again" (it is opened
 * anew, where `lastId` says).
 */
export class Stream {
  constructor(api, path, handlers, { lastId = null } = {}) {
    this.api = api;
    this.path = path;
    this.handlers = handlers;
    this.lastId = lastId;
    this.failures = 0;
    this.leastDelayMs = 0;
    this.closed = false;
    this.resting = false;
    this.controller = null;
    this.wake = null;
    this.onVisibility = () => this.watchVisibility();
    this.onOnline = () => this.wake?.();
    document.addEventListener("visibilitychange", this.onVisibility);
    window.addEventListener("online", this.onOnline);
    this.run();
  }

  /** Nothing more is told after this. */
  close() {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.onVisibility);
    window.removeEventListener("online", this.onOnline);
    clearTimeout(this.hiddenTimer);
    this.controller?.abort();
    this.wake?.();
  }

  watchVisibility() {
    clearTimeout(this.hiddenTimer);
    if (document.hidden) {
      this.hiddenTimer = setTimeout(() => this.rest(), HIDDEN_MS);
    } else if (this.resting) {
      this.resting = false;
      this.wake?.();
    }
  }

  rest() {
    this.resting = true;
    this.controller?.abort();
  }

  async run() {
    while (!this.closed) {
      if (this.resting) {
        this.tell("off");
        await this.sleep(null);
        continue;
      }
      const end = await this.connect();
      if (end === "end" || this.closed) break;
      if (end === "again") continue;
      if (!this.resting) {
        this.tell("reconnecting");
        await this.sleep(this.delay());
      }
    }
    if (!this.closed) {
      this.close();
      this.handlers.onState("off");
    }
  }

  /** One connection, from its opening to its end. */
  async connect() {
    this.controller = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (this.lastId !== null) headers["Last-Event-ID"] = this.lastId;
    try {
      const response = await this.api.open(this.path, { headers, signal: this.controller.signal });
      this.tell("live");
      this.handlers.onOpen?.();
      return await this.read(response.body.getReader());
    } catch (error) {
      if (this.closed || error.name === "AbortError") return "broken";
      this.leastDelayMs = error.retryAfterMs ?? 0;
      const isFinal = error.status >= 400 && error.status < 500 && ![408, 425, 429].includes(error.status);
      if (!isFinal) return "broken";
      if (this.lastId !== null && CURSOR_FAULTS.includes(error.code)) {
        this.lastId = null; // of a store that is another one by now
        return "again";
      }
      if (error.status !== 401) this.handlers.onProblem?.(error);
      return "end";
    } finally {
      this.controller.abort();
    }
  }

  async read(reader) {
    const parser = new SseParser();
    const decoder = new TextDecoder();
    for (;;) {
      const silence = setTimeout(() => this.controller.abort(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (this.closed) return "end";
      if (done) return "broken";
      const messages = parser.push(decoder.decode(value, { stream: true }));
      for (const message of messages) if (message.id !== null) this.lastId = message.id;
      const next = messages.length ? this.handlers.onMessages(messages, this) : undefined;
      if (next) return next;
      this.failures = 0; // after: a stream that ends with an error each time is tried less and less
    }
  }

  /** Longer after each failure, never the same for two pages, and not before the service wants to be asked again. */
  delay() {
    const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.failures);
    this.failures += 1;
    const least = this.leastDelayMs;
    this.leastDelayMs = 0;
    return least + longest / 2 + (Math.random() * longest) / 2;
  }

  sleep(ms) {
    return new Promise((resolve) => {
      const timer = ms === null ? null : setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    }).finally(() => {
      this.wake = null;
    });
  }

  tell(state) {
    if (!this.closed) this.handlers.onState(state);
  }
}
