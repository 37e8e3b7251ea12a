// One symbol: candles with decisions and positions, what else is known of it below, a calculator.
import { html, useEffect, useMemo, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { useHeard, useLive } from "../live.js";
import { DecisionBadge, ModeBadge, Money, Side } from "../parts/badge.js";
import { CandleChart } from "../parts/candle_chart.js";
import { Page, Panel, errorText } from "../parts/page.js";
import { said } from "../parts/said.js";
import { Pane, SharedTime, aligned } from "../parts/panes.js";
import { still, useKept } from "../parts/still.js";
import { SymbolChoice } from "../parts/symbol_choice.js";
import { Table } from "../parts/table.js";

const STEPS = { "1m": 60_000, "15m": 900_000, "1h": 3_600_000 };
const CANDLES = 500;
const SHOWN_DECISIONS = 30;
const MINUTE_MS = 60_000;
const FORMED_OF = 8;

export default function SymbolPage({ live, api, t, params, open }) {
  const symbol = params[0] ?? null;
  const [interval, chooseInterval] = useState("1m");
  const [end, setEnd] = useState(null);
  const [shown, setShown] = useState({ abstentions: false, positions: true });
  const [asTable, setAsTable] = useState(false);
  const [hovered, setHovered] = useState(null);
  const every_s = Math.min(10, Math.max(2, 60 / (api.session.speed ?? 1)));
  const query = { symbol, interval, limit: CANDLES, end };
  const { data, error, again } = useApi(api, symbol && "symbol", query, end ? 0 : every_s);
  const view = useKept(useMemo(() => data && { facts: data, interval, step: STEPS[interval], end }, [data]));
  const shared = useMemo(() => new SharedTime(), [symbol, view?.interval]);
  // The candle of 15m or 1h that is still forming is made of the closed minutes in it.
  const inside = useApi(
    api,
    symbol && interval !== "1m" ? "symbol" : null,
    { symbol, interval: "1m", limit: 60 },
    every_s,
  );
  useLive(live, ["overview"], 250);
  useEffect(
    () => live.on("decisions", (rows) => rows.some((row) => row.symbol === symbol) && again()),
    [symbol, again],
  );
  useEffect(() => setEnd(null), [symbol, interval]);
  const isHeard = useHeard(live);
  const forming = useMemo(
    () => (view && view.end === null ? formingCandle(view.facts.candles, inside.data?.candles ?? [], view.step) : null),
    [view, inside.data],
  );

  if (!symbol) {
    const symbols = live.symbols.length ? live.symbols : (api.session.symbols ?? []);
    return html`<${Page} name="symbol" title=${t("page.symbol")} ready t=${t}>
      <p>${t("symbol.ask")}</p>
      <${SymbolChoice} symbols=${symbols} value="" t=${t} onChoose=${(each) => open(`#/symbol/${each}`)} />
    <//>`;
  }
  const row = live.rows.get(symbol);
  const isNewest = isHeard && view?.end === null;
  const toggle = (name) => setShown({ ...shown, [name]: !shown[name] });
  return html`<${Page}
    name="symbol"
    title=${html`${symbol} <span class="now live" data-testid="symbol-price" data-value=${row?.price}>${t.format.price(row?.price)}</span>`}
    ready=${Boolean(data)}
    error=${error}
    t=${t}
    aside=${html`<${SymbolChoice}
      symbols=${live.symbols}
      value=${symbol}
      t=${t}
      onChoose=${(each) => open(`#/symbol/${each}`)}
    />`}
  >
    ${
      view &&
      html`<div class="panels two">
      <section class="panel full" aria-label=${t("symbol.chart")}>
        <h2 class="hidden">${t("symbol.chart")}</h2>
        <header class="panel-head">
          <div class="toolbar">
            <div class="chips" role="group" aria-label=${t("symbol.interval")}>
              ${Object.keys(STEPS).map(
                (each) => html`<button
                key=${each}
                type="button"
                class="chip"
                aria-pressed=${String(interval === each)}
                data-testid=${`interval-${each}`}
                onClick=${() => chooseInterval(each)}
              >
                ${each}
              </button>`,
              )}
            </div>
            <div class="chips" role="group" aria-label=${t("symbol.drawn")}>
              ${["positions", "abstentions"].map(
                (each) => html`<button
                key=${each}
                type="button"
                class="chip"
                aria-pressed=${String(shown[each])}
                data-testid=${`shown-${each}`}
                onClick=${() => toggle(each)}
              >
                ${t(`symbol.${each}`)}
              </button>`,
              )}
              <button
                type="button"
                class="chip"
                aria-pressed=${String(asTable)}
                data-testid="as-table"
                onClick=${() => setAsTable(!asTable)}
              >
                ${t("symbol.as_table")}
              </button>
            </div>
          </div>
          <div class="toolbar">
            <button type="button" class="quiet" onClick=${() => setEnd(view.facts.candles[0]?.[0])} disabled=${!view.facts.candles.length}>
              ← ${t("symbol.earlier")}
            </button>
            <button type="button" class="quiet" onClick=${() => setEnd(null)} disabled=${end === null}>
              ${t("symbol.newest")} →
            </button>
          </div>
        </header>
        ${view.facts.candles.length === 0 && html`<p class="muted empty">${t("symbol.no_candles")}</p>`}
        ${
          view.facts.candles.length > 0 &&
          (asTable
            ? html`<${CandleTable} facts=${view.facts} step=${view.step} t=${t} />`
            : html`<${Hovered} facts=${view.facts} forming=${forming} step=${view.step} at=${hovered} t=${t} />
              <${CandleChart}
                facts=${view.facts}
                title=${`${symbol} ${view.interval} ${view.end ?? ""}`}
                step=${view.step}
                forming=${forming}
                price=${isNewest ? (row?.price ?? null) : null}
                shown=${shown}
                shared=${shared}
                onHover=${setHovered}
                label=${t("symbol.chart_label", { symbol, interval: view.interval })}
                t=${t}
              />
              <${Legend} shown=${shown} t=${t} />
              <${Panes} facts=${view.facts} shared=${shared} t=${t} />`)
        }
      </section>
      <${Panel} title=${t("symbol.decisions")}>
        <${Decisions} symbol=${symbol} decisions=${view.facts.decisions} t=${t} open=${open} />
      <//>
      <div class="column">
        <${Slippage} symbol=${symbol} api=${api} isLive=${isHeard} t=${t} />
        <${Panel} title=${t("symbol.positions")}>
          <${Positions} positions=${view.facts.positions} open=${row?.position} t=${t} />
        <//>
      </div>
    </div>`
    }
  <//>`;
}

/** The candle that the pointer is on, else the last that closed, and what was decided at its closes. */
function Hovered({ facts, forming, step, at, t }) {
  const { format } = t;
  const last = facts.candles.at(-1);
  const isForming = at !== null && forming?.[0] === at;
  const candle = at === null ? last : isForming ? forming : facts.candles.find((each) => each[0] === at);
  if (!candle) return html`<p class="hovered muted">${format.dayMinute(at)} · ${t("symbol.no_candle")}</p>`;
  const [time, o, h, l, c, volume, source, synthetic] = candle;
  const decided = facts.decisions.filter((each) => each.close_time > time && each.close_time <= time + step);
  const told = step === MINUTE_MS ? decided : decided.filter((each) => each.status === "ok");
  return html`<p class="hovered" data-testid="candle-values">
    <span>${format.dayMinute(time)}</span>
    ${[
      ["o", o],
      ["h", h],
      ["l", l],
      ["c", c],
    ].map(
      ([name, value]) =>
        html`<span key=${name}><span class="muted">${t(`symbol.${name}`)}</span> ${format.price(value)}</span>`,
    )}
    <span class=${c >= o ? "up" : "down"}>${format.signed((c / o - 1) * 100, 2)} %</span>
    <span><span class="muted">${t("symbol.volume")}</span> ${format.number(volume, volume < 100 ? 2 : 0)}</span>
    ${
      isForming &&
      html`<span class="badge status-wait">
      ${t("symbol.forming", { n: format.number(forming[FORMED_OF]), all: format.number(step / MINUTE_MS) })}
    </span>`
    }
    ${source && html`<span class="muted">${source}${synthetic ? `, ${t("symbol.synthetic")}` : ""}</span>`}
    ${told.slice(0, 3).map(
      (each) => html`<span key=${each.close_time}>
      <${DecisionBadge} ...${each} p=${each.p_cal} t=${t} />${each.detail && html` <small class="muted">${each.detail}</small>`}
    </span>`,
    )}
  </p>`;
}

function Legend({ shown, t }) {
  return html`<p class="legend muted">
    <span><span class="up" aria-hidden="true">▲</span> ${t("symbol.long_signal")}</span>
    <span><span class="down" aria-hidden="true">▼</span> ${t("symbol.short_signal")}</span>
    ${shown.abstentions && html`<span><span class="warn" aria-hidden="true">●</span> ${t("symbol.abstention")}</span>`}
    ${
      shown.positions &&
      html`<span><span class="accent" aria-hidden="true">▶</span> ${t("symbol.entry")}</span>
      <span><span aria-hidden="true">✕</span> ${t("symbol.exit")}</span>
      <span><i class="dash up" aria-hidden="true"></i> ${t("symbol.target")}</span>
      <span><i class="dash down" aria-hidden="true"></i> ${t("symbol.stop")}</span>
      <span><i class="dash dots down" aria-hidden="true"></i> ${t("symbol.protective")}</span>
      <span>${t("symbol.accounts")}</span>`
    }
  </p>`;
}

const Panes = still(function Panes({ facts, shared, t }) {
  const { format } = t;
  const parts = useMemo(() => {
    const percent = (rate) => format.number(rate * 100, 4);
    const names = Object.keys(facts.ratios);
    return [
      {
        name: "mark",
        data: aligned([facts.mark.map((row) => [row[0], row[1]]), facts.mark.map((row) => [row[0], row[2]])]),
        series: [{ label: t("symbol.mark_price") }, { label: t("symbol.index_price"), dash: [4, 3] }],
        value: format.price,
      },
      {
        name: "premium",
        data: aligned([facts.premium]),
        series: [{ label: t("symbol.premium") }],
        value: (v) => format.number(v, 2),
      },
      {
        name: "funding",
        data: aligned([facts.mark.map((row) => [row[0], row[3]]), facts.funding]),
        series: [{ label: t("symbol.funding_now") }, { label: t("symbol.funding_paid"), points: "only" }],
        value: percent,
      },
      {
        name: "open_interest",
        data: aligned([facts.open_interest]),
        series: [{ label: t("symbol.open_interest") }],
        value: short(t),
      },
      {
        name: "ratios",
        data: aligned(names.map((name) => facts.ratios[name])),
        series: names.map((name) => ({ label: t.has(`symbol.ratio.${name}`) ? t(`symbol.ratio.${name}`) : name })),
        value: (v) => format.number(v, 2),
      },
    ];
  }, [facts, t]);
  return html`<div class="panes">
    ${parts.map(
      (part, at) => html`<${Pane}
      key=${part.name}
      title=${t(`symbol.pane.${part.name}`)}
      ...${part}
      shared=${shared}
      isLast=${at === parts.length - 1}
      height=${at === parts.length - 1 ? 106 : 84}
      t=${t}
    />`,
    )}
  </div>`;
});

const Decisions = still(function Decisions({ symbol, decisions, t, open }) {
  const { format } = t;
  const rows = useMemo(() => decisions.slice(-SHOWN_DECISIONS).reverse(), [decisions]);
  const columns = [
    {
      id: "time",
      label: t("col.time"),
      cell: (row) => html`<a href=${`#/explain/${symbol}/${row.close_time}`}>${format.dayMinute(row.close_time)}</a>`,
      value: (row) => row.close_time,
    },
    {
      id: "status",
      label: t("symbol.decision"),
      cell: (row) => html`<${DecisionBadge} ...${row} p=${row.p_cal} t=${t} />`,
      value: (row) => row.status,
    },
    { id: "p", label: t("symbol.p"), right: true, cell: (row) => format.percent(row.p_cal), value: (row) => row.p_cal },
    {
      id: "ev",
      label: t("symbol.ev"),
      right: true,
      cell: (row) => format.signed(row.ev_bp, 1),
      value: (row) => row.ev_bp,
    },
    { id: "detail", label: t("col.detail"), wide: true, cell: (row) => row.detail },
  ];
  return html`<${Table}
    columns=${columns}
    rows=${rows}
    keyOf=${(row) => row.close_time}
    label=${t("symbol.decisions")}
    empty=${t("symbol.no_decisions")}
    onRow=${(row) => open(`#/explain/${symbol}/${row.close_time}`)}
  />`;
});

function Positions({ positions, open, t }) {
  // What is open has its profit from the live row, where that tells of the same account.
  const pnl = (row) => {
    if (row.closed_at) return Number(row.net ?? row.realized_pnl);
    return open?.account === row.account ? (open.unrealized_pnl ?? null) : null;
  };
  const { format } = t;
  const rows = useMemo(() => [...positions].sort((a, b) => b.opened_at - a.opened_at), [positions]);
  const columns = [
    {
      id: "opened",
      label: t("col.since"),
      cell: (row) => format.dayMinute(row.opened_at),
      value: (row) => row.opened_at,
    },
    {
      id: "account",
      label: t("col.account"),
      cell: (row) => html`<${ModeBadge} mode=${row.account} t=${t} />`,
      value: (row) => row.account,
    },
    { id: "side", label: t("col.side"), cell: (row) => html`<${Side} side=${row.side} t=${t} />` },
    { id: "entry", label: t("col.entry"), right: true, cell: (row) => format.price(row.entry_price) },
    { id: "exit", label: t("col.exit"), right: true, cell: (row) => format.price(row.exit_price) },
    { id: "why", label: t("col.why"), cell: (row) => said(t, "exit", row.exit_reason) || t("symbol.open") },
    {
      id: "net",
      label: t("col.net"),
      hint: t("col.net_hint"),
      right: true,
      cell: (row) => html`<${Money} value=${pnl(row)} t=${t} />`,
      value: pnl,
    },
  ];
  return html`<${Table}
    columns=${columns}
    rows=${rows}
    keyOf=${(row) => `${row.account} ${row.position_id}`}
    label=${t("symbol.positions")}
    empty=${t("symbol.no_positions")}
  />`;
}

const CandleTable = still(function CandleTable({ facts, step, t }) {
  const { format } = t;
  const rows = useMemo(() => [...facts.candles].reverse(), [facts]);
  const decided = useMemo(() => {
    const found = new Map();
    for (const each of facts.decisions) {
      if (each.status === "ok" || step === MINUTE_MS) found.set(Math.floor((each.close_time - 1) / step) * step, each);
    }
    return found;
  }, [facts, step]);
  const price = (id, at) => ({
    id,
    label: t(`symbol.${id}`),
    right: true,
    cell: (row) => format.price(row[at]),
    value: (row) => row[at],
  });
  const columns = [
    { id: "time", label: t("col.time"), cell: (row) => format.dayMinute(row[0]), value: (row) => row[0] },
    price("o", 1),
    price("h", 2),
    price("l", 3),
    price("c", 4),
    {
      id: "volume",
      label: t("symbol.volume"),
      right: true,
      cell: (row) => format.number(row[5], 2),
      value: (row) => row[5],
    },
    {
      id: "source",
      label: t("symbol.source"),
      cell: (row) => `${row[6]}${row[7] ? `, ${t("symbol.synthetic")}` : ""}`,
      value: (row) => row[6],
    },
    {
      id: "decision",
      label: t("symbol.decision"),
      cell: (row) =>
        decided.has(row[0]) &&
        html`<${DecisionBadge} ...${decided.get(row[0])} p=${decided.get(row[0]).p_cal} t=${t} />`,
    },
  ];
  return html`<div class="tall"><${Table} columns=${columns} rows=${rows} keyOf=${(row) => row[0]} label=${t("symbol.candles")} empty="" /></div>`;
});

/** What an order of so many USDT would cost now. */
const Slippage = still(function Slippage({ symbol, api, isLive, t }) {
  const [side, setSide] = useState("buy");
  const [text, setText] = useState("1000");
  const [amount, setAmount] = useState(1000);
  useEffect(() => {
    const timer = setTimeout(() => setAmount(Number(text)), 300);
    return () => clearTimeout(timer);
  }, [text]);
  const isAmount = Number.isFinite(amount) && amount > 0 && amount <= 1e9;
  const { data, error } = useApi(api, isAmount && isLive ? "slippage" : null, { symbol, side, quote_usdt: amount }, 2);
  const { format } = t;
  return html`<${Panel} title=${t("symbol.slippage")}>
    <form class="inline slippage" onSubmit=${(event) => event.preventDefault()}>
      <div class="chips" role="group" aria-label=${t("col.side")}>
        ${["buy", "sell"].map(
          (each) => html`<button
          key=${each}
          type="button"
          class="chip"
          aria-pressed=${String(side === each)}
          data-testid=${`slippage-${each}`}
          onClick=${() => setSide(each)}
        >
          ${t(`side.${each}`)}
        </button>`,
        )}
      </div>
      <label>
        <span class="hidden">${t("symbol.amount")}</span>
        <input
          class="amount"
          inputmode="decimal"
          value=${text}
          data-testid="slippage-amount"
          aria-invalid=${String(!isAmount)}
          onInput=${(event) => setText(event.target.value)}
        />
        ${" "}USDT
      </label>
    </form>
    ${!isLive && html`<p class="muted">${t("symbol.slippage_away")}</p>`}
    ${!isAmount && html`<p class="warn">${t("symbol.no_amount")}</p>`}
    ${error && html`<p class="warn" role="alert">${errorText(t, error)}</p>`}
    ${
      isAmount &&
      isLive &&
      data?.is_stale &&
      html`<p class="note bad" role="alert" data-testid="slippage-stale">
        <strong>! ${t("symbol.book_stale", { age: format.age(data.age_s) })}</strong>
      </p>`
    }
    ${
      isAmount &&
      isLive &&
      html`<dl class="figures" aria-live="polite" data-testid="slippage-result">
        <div class="figure"><dt>${t("symbol.price_about")}</dt><dd>${format.price(data?.price)}</dd></div>
        <div class="figure"><dt>${t("symbol.bps")}</dt><dd>${format.bps(data?.bps)}</dd></div>
        <div class="figure"><dt>${t("col.quantity")}</dt><dd>${format.quantity(data && Number(data.quantity).toPrecision(6))}</dd></div>
        <div class=${data?.is_stale ? "figure bad" : "figure"}><dt>${t("symbol.book_age")}</dt><dd>${format.age(data?.age_s)}</dd></div>
      </dl>
      ${data?.quoted_usdt && html`<p class="muted"><small>${t("symbol.slippage_note", { amount: format.number(data.quoted_usdt) })}</small></p>`}`
    }
  <//>`;
});

/**
 * The candle that is still forming, of the closed minutes in it: [open_time, o, h, l, c, volume, null, false, how many
 * minutes]. Null where none of its minutes is stored, and of 1m candles, which have no closed minutes in them.
 */
export function formingCandle(candles, minutes, step) {
  if (step === MINUTE_MS || !candles.length || !minutes.length) return null;
  const open = Math.floor(minutes.at(-1)[0] / step) * step;
  if (open <= candles.at(-1)[0]) return null;
  const inside = minutes.filter((each) => each[0] >= open);
  const high = Math.max(...inside.map((each) => each[2]));
  const low = Math.min(...inside.map((each) => each[3]));
  const volume = inside.reduce((sum, each) => sum + each[5], 0);
  return [open, inside[0][1], high, low, inside.at(-1)[4], volume, null, false, inside.length];
}

/** A number with as few digits as an axis has room for. */
function short(t) {
  const made = new Intl.NumberFormat(t.language, { notation: "compact", maximumSignificantDigits: 5 });
  return (value) => made.format(value);
}
