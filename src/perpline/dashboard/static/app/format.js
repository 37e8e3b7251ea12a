// Numbers and times as text. Times are UTC everywhere, as on the command line: the exchange's day is UTC.

const NONE = "–";

export function makeFormat(language, t) {
  const made = new Map();
  const numbers = (digits, more = {}) => {
    const key = digits + JSON.stringify(more);
    if (!made.has(key)) {
      const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, ...more };
      made.set(key, new Intl.NumberFormat(language, options));
    }
    return made.get(key);
  };
  const brief = new Intl.NumberFormat(language, { maximumSignificantDigits: 5 });
  const times = (options) => new Intl.DateTimeFormat(language, { timeZone: "UTC", hourCycle: "h23", ...options });
  const clock = times({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const minute = times({ hour: "2-digit", minute: "2-digit" });
  const toMinute = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
  const toSecond = { ...toMinute, second: "2-digit" };
  const ofThisYear = { minute: times(toMinute), second: times(toSecond) };
  const ofOthers = { minute: times({ year: "numeric", ...toMinute }), second: times({ year: "numeric", ...toSecond }) };
  const dated = (ms) => (isThisYear(ms) ? ofThisYear : ofOthers);
  const day = times({ year: "numeric", month: "short", day: "numeric" });
  const known = (value) => value !== null && value !== undefined && value !== "" && Number.isFinite(Number(value));

  const format = {
    none: NONE,
    /** With exactly so many digits after the point. */
    number: (value, digits = 0) => (known(value) ? numbers(digits).format(value) : NONE),
    /** With a sign, for what can be won and lost. */
    signed: (value, digits = 2) => (known(value) ? numbers(digits, { signDisplay: "exceptZero" }).format(value) : NONE),
    /** A share (0.42) as percent. */
    percent: (value, digits = 1) => (known(value) ? numbers(digits, { style: "percent" }).format(value) : NONE),
    /** Digits by size: the tick size is not known here. */
    price: (value) => (known(value) ? numbers(priceDigits(Math.abs(value))).format(value) : NONE),
    /** As many digits as are there, for amounts of coins. */
    quantity: (value) => (known(value) ? numbers(0, { maximumFractionDigits: 8 }).format(value) : NONE),
    /** The first five digits that say something, where there is little room. */
    short: (value) => (known(value) ? brief.format(value) : NONE),
    usdt: (value) => (known(value) ? numbers(2).format(value) : NONE),
    /** A funding rate of 8 hours, percent. */
    rate: (value) => (known(value) ? numbers(4, { style: "percent", signDisplay: "exceptZero" }).format(value) : NONE),
    bps: (value, digits = 2) => (known(value) ? numbers(digits).format(value) : NONE),
    ms: (value) => (known(value) ? `${numbers(value < 10 ? 1 : 0).format(value)} ms` : NONE),
    bytes(value) {
      if (!known(value)) return NONE;
      const step = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(1, value)) / 10)));
      return `${numbers(step ? 1 : 0).format(value / 1024 ** step)} ${["B", "kB", "MB", "GB", "TB"][step]}`;
    },
    /** 09:41:03 */
    clock: (ms) => (known(ms) ? clock.format(ms) : NONE),
    /** 09:41 */
    minute: (ms) => (known(ms) ? minute.format(ms) : NONE),
    /** Nov 23, 09:41; of another year Nov 23, 2027, 09:41 */
    dayMinute: (ms) => (known(ms) ? dated(ms).minute.format(ms) : NONE),
    /** Nov 23, 09:41:03; of another year Nov 23, 2027, 09:41:03 */
    daySecond: (ms) => (known(ms) ? dated(ms).second.format(ms) : NONE),
    day: (ms) => (known(ms) ? day.format(ms) : NONE),
    /** 2026-11-23T09:41:03Z, for title attributes. */
    iso: (ms) => (known(ms) ? new Date(Number(ms)).toISOString().replace(".000Z", "Z") : ""),
    /** Seconds as one short word: 0.4s, 12s, 3m, 5h, 2d. */
    age(seconds) {
      if (!known(seconds)) return NONE;
      const s = Math.max(0, Number(seconds));
      if (s < 9.95) return t("time.s", { n: numbers(1).format(s) });
      if (s < 99.5) return t("time.s", { n: numbers(0).format(s) });
      if (s < 5970) return t("time.m", { n: numbers(0).format(s / 60) });
      if (s < 172800) return t("time.h", { n: numbers(0).format(s / 3600) });
      return t("time.d", { n: numbers(0).format(s / 86400) });
    },
    /** What is left, as 1:02:33 or 2:33; with a minus sign where it is over. */
    countdown(ms) {
      if (!known(ms)) return NONE;
      const s = Math.floor(Math.abs(ms) / 1000);
      const two = (n) => String(n).padStart(2, "0");
      const hours = Math.floor(s / 3600);
      const tail = `${hours ? two(Math.floor(s / 60) % 60) : Math.floor(s / 60)}:${two(s % 60)}`;
      return `${ms <= -1000 ? "−" : ""}${hours ? `${hours}:` : ""}${tail}`;
    },
  };
  return format;
}

function isThisYear(ms) {
  return new Date(Number(ms)).getUTCFullYear() === new Date().getUTCFullYear();
}

function priceDigits(size) {
  if (size >= 10_000) return 1;
  if (size >= 100) return 2;
  if (size >= 1) return 4;
  if (size >= 0.01) return 5;
  return 7;
}
