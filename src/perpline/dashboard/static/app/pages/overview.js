// One row a symbol: what is heard, what was decided, what is at risk.
import { Component, html, useEffect, useMemo, useState } from "../../vendor/htm-preact.js";
import { useSecond } from "../header.js";
import { useHeard, useLive } from "../live.js";
import { DecisionBadge, ModeBadge, Money, Side } from "../parts/badge.js";
import { KINDS } from "../parts/cell_signs.js";
import { Page } from "../parts/page.js";
import { Sparkline } from "../parts/sparkline.js";
import { WindowTable, sorted } from "../parts/table.js";

const ROW_HEIGHT = 36;
const ABSTENTIONS = KINDS.filter((kind) => kind.startsWith("skipped_"));
const FILTERS = ["all", "signals", "abstained", "positions", "stale"];

export default function Overview({ live, t, open }) {
  useLive(live, ["overview"]);
  useSecond();
  const [filter, setFilter] = useState("");
  const [only, setOnly] = useState("all");
  const [sort, setSort] = useState({ id: "symbol", down: false });
  const second = Math.floor((live.now() ?? 0) / 1000);
  const beat = useBeat();
  const isHeard = useHeard(live);
  const hasModes = live.symbols.some((symbol) => isException(live, live.rows.get(symbol)));
  const columns = useMemo(() => columnsOf(t, live, hasModes), [t, live.streams, hasModes]);
  // The order is made anew once a second and not with every price: rows that jump five times a second cannot be read.
  const symbols = useMemo(
    () => sorted(matching(live, filter, only), columns, sort),
    [live.symbols, columns, filter, only, sort, beat],
  );
  const ready = live.rows.size > 0;
  return html`<${Page}
    name="overview"
    title=${t("overview.title")}
    ready=${ready}
    t=${t}
    aside=${html`<div class="toolbar">
      <div class="chips" role="group" aria-label=${t("overview.show")}>
        ${FILTERS.map((each) => html`<button
          key=${each}
          type="button"
          class="chip"
          aria-pressed=${only === each ? "true" : "false"}
          onClick=${() => setOnly(each)}
          data-testid=${`show-${each}`}
        >
          ${t(`overview.${each}`)}
        </button>`)}
      </div>
      <label class="hidden" for="overview-filter">${t("overview.filter")}</label>
      <input
        id="overview-filter"
        type="search"
        data-filter
        data-testid="overview-filter"
        placeholder=${`${t("overview.filter")}  /`}
        value=${filter}
        spellcheck=${false}
        autocomplete="off"
        onInput=${(event) => setFilter(event.target.value)}
      />
      <span class="muted count" role="status" data-testid="overview-count">
        ${t("overview.count", { shown: t.format.number(symbols.length), all: t.format.number(live.symbols.length) })}
      </span>
    </div>`}
  >
    ${!ready && html`<p class="muted">${t("overview.waiting")}</p>`}
    ${ready && !symbols.length && html`<p class="muted empty">${t("overview.none")}</p>`}
    ${ready &&
    symbols.length > 0 &&
    html`<${WindowTable}
      columns=${columns}
      items=${symbols}
      keyOf=${itself}
      Row=${Row}
      rowProps=${{ live, t, open, second, isHeard }}
      rowHeight=${ROW_HEIGHT}
      label=${t("overview.table")}
      sort=${sort}
      onSort=${setSort}
    />`}
  <//>`;
}

/** A row, drawn again when its row is another object, or the second (funding), the words or whether it is heard are. */
class Row extends Component {
  drawn = null;

  shouldComponentUpdate(next) {
    if (next.live.rows.get(next.item) !== this.drawn) return true;
    const others = ["item", "isActive", "index", "places", "t", "second", "isHeard"];
    return others.some((name) => next[name] !== this.props[name]);
  }

  render({ item: symbol, live, t, open, isHeard, isActive, index, top, places, onFocus }) {
    const row = live.rows.get(symbol);
    this.drawn = row;
    if (!row) return null;
    const cell = (column) => `cell-${symbol}-${column}`;
    const { format } = t;
    const tab = isActive ? 0 : -1;
    const explain = row.last ? `#/explain/${symbol}/${row.last.close_time}` : null;
    return html`<div
      role="row"
      data-testid=${`row-${symbol}`}
      data-key=${symbol}
      data-active=${isActive ? "" : undefined}
      aria-rowindex=${index + 2}
      tabindex=${tab}
      class="grid-row opens"
      style=${{ ...places, top: `${top}px` }}
      onFocus=${() => onFocus(symbol)}
      onClick=${(event) => !event.target.closest("a") && open(`#/symbol/${symbol}`)}
      onKeyDown=${(event) => {
        if (event.target !== event.currentTarget) return;
        if (event.key === "Enter") open(`#/symbol/${symbol}`);
        else if (event.key === "e" && explain) open(explain);
      }}
    >
      <div role="rowheader" class="sticky symbol-cell">
        <a href=${`#/symbol/${symbol}`} tabindex=${tab} title=${symbol}>${symbol}</a>
        ${isException(live, row) && html`<${ModeBadge} mode=${row.mode} t=${t} />`}
      </div>
      <div role="cell" class="right strong live" data-testid=${cell("price")} data-value=${row.price}>${format.price(row.price)}</div>
      <div role="cell" class="right live" data-testid=${cell("spread")} data-value=${row.spread_bps}>${format.bps(row.spread_bps)}</div>
      <div role="cell" class="right live" data-testid=${cell("mark")} data-value=${row.mark}>${format.price(row.mark)}</div>
      <div role="cell" class="right live" data-testid=${cell("funding")} data-value=${row.funding}>
        <span class=${row.funding < 0 ? "down" : ""}>${format.rate(row.funding)}</span>
        <small class="muted countdown">${left(t, live, row.next_funding)}</small>
      </div>
      ${live.streams.map((stream, at) => age(t, symbol, stream, isHeard ? row.ages?.[at] : undefined, row.stale?.includes(stream)))}
      <div role="cell" data-testid=${cell("last")} data-value=${row.last?.status}>
        ${row.last &&
        html`<a
          class="plain"
          href=${explain}
          tabindex=${tab}
          title=${t("overview.explain_hint", { time: format.minute(row.last.close_time) })}
        >
          <${DecisionBadge} ...${row.last} t=${t} />
          <small class="muted">${format.minute(row.last.close_time)}</small>
        </a>`}
      </div>
      <div
        role="cell"
        class="right live position-cell"
        data-testid=${cell("position")}
        data-value=${row.position?.quantity}
        data-account=${row.position?.account}
      >
        ${row.position && held(t, row.position)}
      </div>
      <div role="cell" class="right live" data-testid=${cell("pnl")} data-value=${pnlOf(row)}>
        ${row.position && html`<${Money} value=${pnlOf(row)} t=${t} />`}
      </div>
      <div role="cell" class="spark-cell">
        <${Sparkline} values=${row.spark} width=${104} height=${26} label=${sparkLabel(t, symbol, row.spark)} />
      </div>
    </div>`;
  }
}

/** Whose position it is, whether its stop rests at the exchange, which way and how much. */
function held(t, { account, protected: isProtected, side, quantity }) {
  return html`${isProtected === false &&
    html`<span class="bad strong" title=${t("overview.no_stop")}>
      <span aria-hidden="true">!</span><span class="hidden">${t("overview.no_stop")}</span>
    </span>`}
    ${account && html`<${ModeBadge} mode=${account} t=${t} brief />`}
    <${Side} side=${side} t=${t} brief />${" "}
    <span title=${t.format.quantity(quantity)}>${t.format.short(quantity)}</span>`;
}

/** `seconds` is undefined where nothing is heard, so that it is not known, and null where nothing has come yet. */
function age(t, symbol, stream, seconds, isStale) {
  const is = seconds === undefined ? "unknown" : seconds === null ? "none" : isStale ? "stale" : "ok";
  const text = t.format.age(seconds);
  return html`<div
    role="cell"
    key=${stream}
    class="age ${is}"
    data-testid=${`age-${symbol}-${stream}`}
    aria-label=${t(`age.${is}`, { symbol, stream: t(`stream.${stream}`), age: text })}
  >
    <span>${is === "stale" ? "!" : ""}${text}</span>
  </div>`;
}

/** Whether the symbol has another mode than the one in the header. */
function isException(live, row) {
  return Boolean(row?.mode) && row.mode !== live.header.mode;
}

function columnsOf(t, live, hasModes) {
  const of = (pick) => (symbol) => pick(live.rows.get(symbol) ?? {});
  return [
    { id: "symbol", label: t("col.symbol"), width: hasModes ? 168 : 132, value: itself, className: "sticky" },
    { id: "price", label: t("col.price"), width: 96, right: true, downFirst: true, value: of((row) => row.price) },
    {
      id: "spread",
      label: t("col.spread"),
      width: 76,
      right: true,
      downFirst: true,
      hint: t("overview.spread_hint"),
      value: of((row) => row.spread_bps),
    },
    { id: "mark", label: t("col.mark"), width: 96, right: true, downFirst: true, value: of((row) => row.mark) },
    {
      id: "funding",
      label: t("col.funding"),
      width: 146,
      right: true,
      downFirst: true,
      hint: t("overview.funding_hint"),
      value: of((row) => row.funding),
    },
    ...live.streams.map((stream, at) => ({
      id: stream,
      label: t(`stream.${stream}`),
      width: 54,
      className: "age-head",
      downFirst: true,
      hint: t("overview.age_hint", { stream: t(`stream.${stream}`) }),
      value: of((row) => row.ages?.[at]),
    })),
    { id: "last", label: t("col.last"), width: 152, value: of(decisionRank), downFirst: true },
    {
      id: "position",
      label: t("col.position"),
      width: 124,
      right: true,
      downFirst: true,
      value: of((row) => row.position && row.position.side * row.position.quantity),
    },
    { id: "pnl", label: t("col.pnl"), width: 84, right: true, downFirst: true, value: of(pnlOf) },
    { id: "spark", label: t("col.spark"), width: 120 },
  ];
}

function matching(live, filter, only) {
  const wanted = filter.trim().toUpperCase();
  return live.symbols.filter((symbol) => {
    if (wanted && !symbol.includes(wanted)) return false;
    const row = live.rows.get(symbol);
    if (only === "signals") return row.last?.status === "ok";
    if (only === "abstained") return row.last && row.last.status !== "ok" && row.last.status !== "flat";
    if (only === "positions") return Boolean(row.position);
    if (only === "stale") return Boolean(row.stale?.length);
    return true;
  });
}

/** Signals by their probability, then what was flat, then the abstentions, each kind together. */
function decisionRank(row) {
  if (!row.last) return null;
  const { status, p } = row.last;
  if (status === "ok") return 1 + (p ?? 0);
  return status === "flat" ? 0 : status === "cooldown" ? -1 : -2 - ABSTENTIONS.indexOf(status);
}

function pnlOf(row) {
  return row.position?.unrealized_pnl ?? row.position?.unrealized ?? null;
}

function left(t, live, at) {
  const now = live.now();
  return at && now !== null && at > now ? t.format.countdown(at - now) : "";
}

function sparkLabel(t, symbol, values) {
  if (!values || values.length < 2) return symbol;
  return t("overview.spark_label", { symbol, change: t.format.percent(values.at(-1) / values[0] - 1, 2) });
}

function useBeat() {
  const [beat, setBeat] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setBeat((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  return beat;
}

function itself(symbol) {
  return symbol;
}
