// Requests to the dashboard's own server.
import { useCallback, useEffect, useRef, useState } from "../vendor/htm-preact.js";

/**
 * What the server said no to. `message` is its sentence, `status` the HTTP status, 0 where it did not answer, `code` a
 * word for what it is, where the page has words of its own for it.
 */
export class ApiError extends Error {
  constructor(message, status, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** `get(path, query)` and `post(path, body)` → decoded JSON, or raise ApiError. `session` after `begin()`. */
export class Api {
  session = null;

  /** Asks who we are; again whenever what the session says may have changed. */
  async begin() {
    this.session = await this.get("session");
    return this.session;
  }

  get(path, query = {}, signal = undefined) {
    const known = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
    const text = new URLSearchParams(known).toString();
    return ask(`/api/${path}${text ? `?${text}` : ""}`, { signal });
  }

  post(path, body) {
    const headers = { "Content-Type": "application/json", "X-Perpline-CSRF": this.session?.csrf ?? "" };
    return ask(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  }
}

/**
 * What `api.get(path, query)` answers, asked again `every_s` seconds (0: once) and when path or query change. `every_s`
 * may be a function of what was answered, null where it was a refusal.
 *
 * Returns {data, error, again}: the newest data (kept while the next answer is on its way, null after a change of
 * path or query), the ApiError of the last request or null, and a function that asks now. `path` null asks nothing.
 */
export function useApi(api, path, query = {}, every_s = 0) {
  const key = path === null ? null : `${path}?${JSON.stringify(query)}`;
  const [state, setState] = useState({ key: null, data: null, error: null });
  const [asked, setAsked] = useState(0);
  const newest = useRef(null);
  newest.current = { path, query, every_s };
  useEffect(() => {
    if (key === null) return undefined;
    const stop = new AbortController();
    let timer = null;
    const look = async () => {
      let data = null;
      try {
        data = await api.get(newest.current.path, newest.current.query, stop.signal);
        if (!stop.signal.aborted) setState({ key, data, error: null });
      } catch (error) {
        if (stop.signal.aborted) return;
        setState((old) => ({ key, data: old.key === key ? old.data : null, error }));
      }
      const wait = newest.current.every_s;
      const wait_s = typeof wait === "function" ? wait(data) : wait;
      if (wait_s && !stop.signal.aborted) timer = setTimeout(look, wait_s * 1000);
    };
    look();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [key, typeof every_s === "function" ? null : every_s, asked]);
  const again = useCallback(() => setAsked((count) => count + 1), []);
  if (state.key !== key) return { data: null, error: null, again };
  return { data: state.data, error: state.error, again };
}

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("", 0);
  }
  let body = null;
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (answer.ok) throw new ApiError(`${url}: not JSON`, answer.status);
  }
  if (!answer.ok) throw new ApiError(body?.error ?? `HTTP ${answer.status}`, answer.status, body?.code ?? null);
  return body;
}
