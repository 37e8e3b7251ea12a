// The one WebSocket, and what is known by it.
import { useEffect, useState } from "../vendor/htm-preact.js";

export const STREAMS = ["kline_1m", "kline_15m", "kline_1h", "markPrice@1s", "bookTicker"];
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;
const SILENT_MS = 10_000;
const KEPT_LOG_ROWS = 500;
const MOST_WAITING = 100;

/**
 * The newest of everything that the server pushes. Read `header`, `rows` (symbol → row; a row object is replaced, never
 * changed, so `===` says whether it is still the same), `symbols` (sorted), `log` (newest last), `state` and `now()`.
 *
 * `state` is "connecting", "live" or "away". `on(kind, listener)` calls the listener after each
 *   "overview"   rows or header changed: listener(changedSymbols)
 *   "decisions"  a batch was decided: listener(rows)
 *   "log"        rows were added to `log`: listener(rows)
 *   "state"      `state` changed
 * and returns the function that ends it. Everything is applied inside an animation frame, and the server is told after
 * it: it sends no next change before, so a page that is not looked at, or too slow, gets fewer and newer ones.
 */
export class Live {
  header = {};
  rows = new Map();
  symbols = [];
  streams = STREAMS;
  log = [];
  state = "connecting";
  messages = 0;

  constructor(url) {
    this._url = url;
    this._socket = null;
    this._listeners = new Map();
    this._waiting = [];
    this._wait_ms = FIRST_WAIT_MS;
    this._now = null;
    this._now_at = 0;
    this._heard_at = 0;
    this._frame = null;
  }

  /** Connects, and again whenever the connection ends. */
  open() {
    if (this._socket === null) this._connect();
  }

  on(kind, listener) {
    if (!this._listeners.has(kind)) this._listeners.set(kind, new Set());
    this._listeners.get(kind).add(listener);
    return () => this._listeners.get(kind).delete(listener);
  }

  /** Whether what is live here is: the server speaks to this page, and the worker to the server. */
  get isHeard() {
    return this.state === "live" && this.header.worker === "live";
  }

  /** The market's time, ms: the newest that was told, and what has passed since. Null before anything was told. */
  now() {
    if (this._now === null) return null;
    const passed = Math.min(performance.now() - this._now_at, 5_000);
    return this._now + passed * (this.header.speed ?? 1);
  }

  _connect() {
    const socket = new WebSocket(this._url);
    this._socket = socket;
    this._heard_at = performance.now();
    const watch = setInterval(() => {
      // With a worker something changes each second. Without one, or while nobody looks, silence means nothing.
      if (document.hidden || this.header.worker !== "live") this._heard_at = performance.now();
      if (performance.now() - this._heard_at > SILENT_MS) lost();
    }, 1_000);
    const lost = () => {
      clearInterval(watch);
      socket.onmessage = null;
      socket.onclose = null;
      socket.close();
      this._waiting = []; // a new connection tells everything again
      this._set("away");
      setTimeout(() => this._connect(), this._wait_ms);
      this._wait_ms = Math.min(LONGEST_WAIT_MS, this._wait_ms * 2);
    };
    socket.onmessage = (event) => this._take(event.data);
    socket.onclose = lost;
  }

  _take(text) {
    this._heard_at = performance.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // only our own server speaks here: nothing to be done about a message that is none
    }
    this._waiting.push(message);
    // A page that nobody looks at has no frames: what is pushed without being asked for must not pile up meanwhile.
    if (this._waiting.length >= MOST_WAITING) this._draw();
    else this._frame ??= requestAnimationFrame(() => this._draw());
  }

  _draw() {
    if (this._frame !== null) cancelAnimationFrame(this._frame);
    this._frame = null;
    const waiting = this._waiting;
    this._waiting = [];
    this._wait_ms = FIRST_WAIT_MS;
    this._set("live");
    let changed = null;
    let ack = null;
    for (const message of waiting) {
      this.messages += 1;
      if (message.type === "overview" || message.type === "change") {
        if (message.type === "overview") changed = this._replaceAll(message, changed);
        else changed = this._merge(message, changed ?? new Set());
        ack = message.n ?? this.messages;
      } else if (message.type === "decisions") {
        this._tell("decisions", message.rows);
      } else if (message.type === "log" || message.type === "logs") {
        this._addLog(message.type === "logs" ? message.rows : [message]);
      }
    }
    if (changed !== null) this._tell("overview", changed);
    if (ack !== null) {
      const socket = this._socket;
      setTimeout(() => {
        if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "ack", n: ack }));
      });
    }
  }

  _replaceAll(message, changed) {
    this.header = message.header ?? {};
    this.streams = message.streams ?? STREAMS;
    this.rows = new Map(Object.entries(message.rows ?? {}));
    this.symbols = [...this.rows.keys()].sort();
    this._setNow(message.now);
    return new Set([...(changed ?? []), ...this.rows.keys()]);
  }

  _merge(message, changed) {
    if (message.header) this.header = { ...this.header, ...message.header };
    const before = this.rows.size;
    for (const [symbol, part] of Object.entries(message.rows ?? {})) {
      if (part === null) this.rows.delete(symbol);
      else this.rows.set(symbol, { ...this.rows.get(symbol), ...part });
      changed.add(symbol);
    }
    if (this.rows.size !== before) this.symbols = [...this.rows.keys()].sort();
    this._setNow(message.now);
    return changed;
  }

  _addLog(rows) {
    this.log = [...this.log, ...rows].slice(-KEPT_LOG_ROWS);
    this._tell("log", rows);
  }

  _setNow(now) {
    if (typeof now !== "number") return;
    this._now = now;
    this._now_at = performance.now();
  }

  _set(state) {
    if (this.state === state) return;
    this.state = state;
    this._tell("state");
  }

  _tell(kind, what) {
    for (const listener of this._listeners.get(kind) ?? []) listener(what);
  }
}

/** `live.isHeard`; the component is drawn again when it changes. */
export function useHeard(live) {
  const [isHeard, set] = useState(live.isHeard);
  useEffect(() => {
    const look = () => set(live.isHeard);
    look();
    const ends = ["overview", "state"].map((kind) => live.on(kind, look));
    return () => ends.forEach((end) => end());
  }, [live]);
  return isHeard;
}

/** Draws the component again after every event of one of these kinds; `every_ms` slows it to the newest of each while. */
export function useLive(live, kinds = ["overview"], every_ms = 0) {
  const [, draw] = useState(0);
  useEffect(() => {
    let timer = null;
    const again = () => draw((count) => count + 1);
    const heard = () => {
      if (!every_ms) return again();
      timer ??= setTimeout(() => {
        timer = null;
        again();
      }, every_ms);
      return undefined;
    };
    const ends = kinds.map((kind) => live.on(kind, heard));
    return () => {
      ends.forEach((end) => end());
      clearTimeout(timer);
    };
  }, [live, kinds.join(), every_ms]);
}
