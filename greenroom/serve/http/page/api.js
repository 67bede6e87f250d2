// The API of the service: requests with the key, answers as JSON, problems as errors.

const KEPT = "greenroom.key";

/** What the service answered instead of what was asked for. `status` is 0 where it could not be reached. */
class Problem extends Error {
  constructor(status, code, detail, retryAfterMs = null) {
    super(detail);
    this.status = status;
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

/** The key that was kept for this tab, or null. */
export function keptKey() {
  return sessionStorage.getItem(KEPT);
}

export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(KEPT);
  else sessionStorage.setItem(KEPT, key);
}

export class Api {
  /** `onRefused` is called once the service does not take the key (any more). */
  constructor(key, onRefused = () => {}) {
    this.key = key;
    this.onRefused = onRefused;
  }

  /** The response, whatever its body is. Raises Problem for all that is not a success. */
  async open(address, { method = "GET", body, headers = {}, signal } = {}) {
    const sent = { ...headers, Authorization: `Bearer ${this.key}` };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(`v1/${address}`, document.baseURI), {
        method,
        headers: sent,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        cache: "no-store",
        credentials: "omit",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "unreachable", "The service cannot be reached.");
    }
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status === 401) this.onRefused(problem);
    throw problem;
  }

  async get(address, given = {}, options = {}) {
    const response = await this.open(withQuery(address, given), options);
    return response.json();
  }

  async post(address, body = {}) {
    const response = await this.open(address, { method: "POST", body });
    return response.status === 204 ? null : response.json();
  }
}

function withQuery(address, given) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given)) if (value != null && value !== "") query.set(name, value);
  const text = query.toString();
  return text ? `${address}?${text}` : address;
}

/** A path made of parts that may hold anything. */
export function path(...parts) {
  return parts.map(encodeURIComponent).join("/");
}

async function problemOf(response) {
  const { status } = response;
  const seconds = Number(response.headers.get("Retry-After"));
  const retryAfterMs = seconds > 0 ? seconds * 1_000 : null;
  try {
    const { code, detail } = await response.json();
    return new Problem(status, code, detail, retryAfterMs);
  } catch {
    return new Problem(status, "unknown", `The service answered ${status}.`, retryAfterMs);
  }
}
