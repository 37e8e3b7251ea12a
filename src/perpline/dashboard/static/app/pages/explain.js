// One decision, and everything it was made of.
import { html, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { useLive } from "../live.js";
import { Bar, StackedBar } from "../parts/bars.js";
import { DecisionBadge, ModeBadge, Money, Side } from "../parts/badge.js";
import { Figure, Page, Panel } from "../parts/page.js";
import { said } from "../parts/said.js";
import { SymbolChoice } from "../parts/symbol_choice.js";
import { Table } from "../parts/table.js";

const MINUTE_MS = 60_000;
const SHOWN_FEATURES = 14;
const LOOK_EVERY_S = 3;
const STEPS = ["features", "predict", "decide", "published"];

export default function Explain({ live, api, t, params, open }) {
  const [symbol, time, slot] = [params[0] ?? null, Number(params[1] ?? NaN), params[2] ?? null];
  const isAsked = symbol !== null && Number.isFinite(time);
  const every_s = (facts) => (facts && !isUnderWay(facts) ? 0 : LOOK_EVERY_S);
  const { data, error } = useApi(api, isAsked ? "explain" : null, { symbol, close_time: time, slot }, every_s);
  const isNone = error?.code === "no_row";
  useLive(live, ["decisions"], 1000);
  const { format } = t;
  const newest = live.rows.get(symbol)?.last?.close_time ?? Infinity;
  const at = (ms) => `#/explain/${symbol}/${ms}${slot ? `/${slot}` : ""}`;
  if (!isAsked) return html`<${Ask} live=${live} symbol=${symbol} t=${t} open=${open} />`;
  return html`<${Page}
    name="explain"
    title=${html`<a class="plain" href=${`#/symbol/${symbol}`}>${symbol}</a> · ${format.dayMinute(time)}`}
    ready=${Boolean(data) || isNone}
    error=${isNone ? null : error}
    t=${t}
    aside=${html`<nav class="steps" aria-label=${t("explain.other_minutes")}>
      <a href=${at(time - MINUTE_MS)} data-testid="explain-previous">← ${format.minute(time - MINUTE_MS)}</a>
      ${time < newest && html`<a href=${at(time + MINUTE_MS)} data-testid="explain-next">${format.minute(time + MINUTE_MS)} →</a>`}
      <a href=${`#/symbol/${symbol}`}>${t("explain.to_chart")}</a>
    </nav>`}
  >
    ${
      isNone &&
      html`<p class="note verdict" data-testid="explain-status" data-status="none">
      <strong>${t("explain.no_row")}</strong> ${t("explain.no_row_why")} <a href="#/health">${t("page.health")}</a>
    </p>`
    }
    ${data && html`<${Verdict} facts=${data} t=${t} />`}
    ${
      data &&
      html`<div class="panels two">
      <div class="column">
        <${Odds} facts=${data} t=${t} />
        <${Prices} decision=${data.decision} t=${t} />
        <${Candles} candles=${data.candles} t=${t} />
        <${Took} took=${data.latency_ms} t=${t} />
      </div>
      <div class="column">
        <${Vector} vector=${data.vector ?? []} facts=${data} t=${t} />
        <${Publication} outbox=${data.outbox} t=${t} />
        <${Model} facts=${data} t=${t} />
      </div>
      <${Outcome} facts=${data} t=${t} />
      <${Traded} trading=${data.trading} t=${t} />
    </div>`
    }
  <//>`;
}

/** Whether there is more to come: a message that waits, a position that is open. */
function isUnderWay({ outbox, trading }) {
  return Boolean(outbox && !outbox.published_at) || Boolean(trading?.positions.some((each) => each.status !== "closed"));
}

function Ask({ live, symbol, t, open }) {
  const known = symbol && live.rows.get(symbol)?.last;
  return html`<${Page} name="explain" title=${t("page.explain")} ready=${live.symbols.length > 0} t=${t}>
    <p>${t("explain.ask")}</p>
    <${SymbolChoice}
      symbols=${live.symbols}
      value=${symbol ?? ""}
      t=${t}
      onChoose=${(each) => {
        const last = live.rows.get(each)?.last;
        open(last ? `#/explain/${each}/${last.close_time}` : `#/symbol/${each}`);
      }}
    />
    ${known && html`<p><a href=${`#/explain/${symbol}/${known.close_time}`}>${t.format.dayMinute(known.close_time)}</a></p>`}
  <//>`;
}

/** The decision in a sentence. */
function Verdict({ facts, t }) {
  const { decision, slot } = facts;
  const { format } = t;
  if (!decision) {
    return html`<p class="note verdict" data-testid="explain-status" data-status="shadow">${t("explain.not_decided", { slot })}</p>`;
  }
  const { status } = decision;
  const values = {
    side: decision.side === 0 ? "" : t(decision.side > 0 ? "side.long" : "side.short"),
    p: format.percent(decision.p_cal, 1),
    threshold: format.percent(decision.threshold, 1),
    ev: format.signed(decision.ev_bp, 1),
    ev_min: format.number(facts.model.ev_min_bp, 1),
    n: format.number(decision.xs_n),
  };
  const isAsked = decision.p_cal !== null && decision.p_cal !== undefined;
  const sentence = status === "ok" ? t("explain.said_ok", values) : isAsked ? t("explain.said_flat", values) : "";
  return html`<div class="note verdict" data-testid="explain-status" data-status=${status}>
    <p class="verdict-head">
      <${DecisionBadge} ...${decision} p=${decision.p_cal} t=${t} />
      <span class="muted">${t("explain.slot", { slot })} · ${t("explain.together", values)}</span>
    </p>
    ${status !== "ok" && html`<p><strong>${capital(t(`status_long.${status}`))}${decision.detail ? `: ${decision.detail}` : ""}.</strong></p>`}
    ${status === "ok" && decision.detail && html`<p>${decision.detail}</p>`} ${sentence && html`<p>${sentence}</p>`}
  </div>`;
}

/** What the model gave each side against what was wanted. */
function Odds({ facts, t }) {
  const { decision, prediction, model } = facts;
  const { format } = t;
  const threshold = decision?.threshold ?? model.threshold;
  const line = (name, value, raw) => html`<div class="odds" key=${name}>
    <${Side} side=${name === "long" ? 1 : -1} t=${t} />
    <${Bar} value=${value} max=${1} mark=${threshold} markText=${t("explain.threshold")} tone=${value >= threshold ? "ok" : ""} />
    <span class="right"><strong>${format.percent(value, 1)}</strong> <small class="muted">${t("explain.raw", { p: format.percent(raw, 1) })}</small></span>
  </div>`;
  return html`<${Panel} title=${t("explain.odds")}>
    ${!prediction && html`<p class="muted empty">${t("explain.not_asked")}</p>`}
    ${prediction && line("long", prediction.p_long, prediction.p_long_raw)} ${prediction && line("short", prediction.p_short, prediction.p_short_raw)}
    <dl class="figures gap-above">
      <${Figure} name=${t("explain.threshold")} value=${format.percent(threshold, 1)} />
      <${Figure} name=${t("explain.ev")} value=${`${format.signed(decision?.ev_bp, 1)}`} />
      <${Figure} name=${t("explain.ev_min")} value=${format.number(model.ev_min_bp, 1)} />
      <${Figure} name=${t("explain.cost")} value=${format.number(decision?.cost_bp, 1)} />
    </dl>
  <//>`;
}

function Prices({ decision, t }) {
  const { format } = t;
  if (!decision) return null;
  const facts = [
    ["mark", format.price(decision.ref_mark)],
    ["last", format.price(decision.ref_last)],
    ["bid", format.price(decision.bid)],
    ["ask_price", format.price(decision.ask)],
    ["target", format.price(decision.tp_price)],
    ["stop", format.price(decision.sl_price)],
    ["horizon", decision.horizon_s ? format.age(decision.horizon_s) : format.none],
    ["valid_until", decision.valid_until ? format.daySecond(decision.valid_until) : format.none],
    ["nan_count", format.number(decision.nan_count)],
    ["ood_share", format.percent(decision.ood_share, 1)],
    ["late_mask", decision.late_mask ? `0b${decision.late_mask.toString(2)}` : t("explain.none")],
  ];
  return html`<${Panel} title=${t("explain.inputs")}>
    <dl class="figures">${facts.map(([name, value]) => html`<${Figure} key=${name} name=${t(`explain.${name}`)} value=${value} />`)}</dl>
  <//>`;
}

/** What stands out comes first: beyond what training had, clipped, without a value; then what is critical. */
function Vector({ vector, facts, t }) {
  const [all, setAll] = useState(false);
  const { format } = t;
  const rank = (each) =>
    (each.unusual ? 8 : 0) + (each.clipped ? 4 : 0) + (each.value === null ? 2 : 0) + (each.critical ? 1 : 0);
  const rows = vector
    .map((each, place) => ({ ...each, place, rank: rank(each) }))
    .sort((a, b) => b.rank - a.rank || a.place - b.place);
  const hasZ = vector.some((each) => Number.isFinite(each.z));
  const columns = [
    {
      id: "name",
      label: t("explain.feature"),
      wide: true,
      cell: (row) => html`<span class="mono">${row.name}</span>`,
      value: (row) => row.name,
    },
    {
      id: "value",
      label: t("explain.value"),
      right: true,
      cell: (row) => significant(t, row.value),
      value: (row) => row.value,
    },
    ...(hasZ
      ? [{ id: "z", label: "z", right: true, cell: (row) => format.signed(row.z, 1), value: (row) => row.z }]
      : []),
    {
      id: "note",
      label: t("explain.notes"),
      wide: true,
      value: (row) => -row.rank,
      cell: (row) => html`${row.unusual && html`<span class="badge status-fault">${t("explain.unusual")}</span> `}
      ${row.clipped && html`<span class="badge status-wait">${t("explain.clipped", { low: significant(t, row.clip?.[0]), high: significant(t, row.clip?.[1]) })}</span> `}
      ${row.value === null && html`<span class="badge status-wait">${t("explain.no_value")}</span> `}
      ${row.critical && html`<span class="badge">${t("explain.critical")}</span>`}`,
    },
  ];
  return html`<${Panel} title=${t("explain.vector")} aside=${html`<span class="muted">${t("explain.features_n", { n: format.number(vector.length) })}</span>`}>
    ${facts.prediction && html`<p class="muted"><small class="mono">${facts.prediction.feat_ref}</small></p>`}
    <div class="whole">
      <${Table}
        columns=${columns}
        rows=${all ? rows : rows.slice(0, SHOWN_FEATURES)}
        keyOf=${(row) => row.name}
        label=${t("explain.vector")}
        empty=${t("explain.no_vector")}
      />
    </div>
    ${
      vector.length > SHOWN_FEATURES &&
      html`<button type="button" class="quiet" aria-expanded=${String(all)} onClick=${() => setAll(!all)} data-testid="vector-all">
      ${all ? t("models.fewer") : t("models.all_columns", { n: format.number(vector.length) })}
    </button>`
    }
  <//>`;
}

function Candles({ candles, t }) {
  const { format } = t;
  const isWhole = candles.stored >= candles.wanted && !candles.gaps.length;
  const price = (name) => ({
    id: name,
    label: t(`symbol.${name[0]}`),
    right: true,
    cell: (row) => format.price(row[name]),
  });
  return html`<${Panel}
    title=${t("explain.candles")}
    aside=${html`<span class=${isWhole ? "ok" : "warn"}>${isWhole ? "✓" : "!"} ${format.number(candles.stored)} / ${format.number(candles.wanted)}</span>`}
  >
    <p>
      ${t("explain.candles_text", { stored: format.number(candles.stored), wanted: format.number(candles.wanted), synthetic: format.number(candles.synthetic), sources: candles.sources.join(", ") || format.none })}
    </p>
    ${
      candles.gaps.length > 0 &&
      html`<ul>
      ${candles.gaps.map(
        (gap) => html`<li key=${gap.from}>
        ${format.dayMinute(gap.from)} – ${format.minute(gap.to)}: ${gap.cause},${" "}
        ${gap.repaired_by ? t("explain.repaired_by", { by: gap.repaired_by }) : t("health.open")}
      </li>`,
      )}
    </ul>`
    }
    <${Table}
      columns=${[
        { id: "time", label: t("col.time"), cell: (row) => format.minute(row.open_time) },
        price("open"),
        price("high"),
        price("low"),
        price("close"),
        { id: "volume", label: t("symbol.volume"), right: true, cell: (row) => format.number(row.volume, 2) },
        { id: "source", label: t("symbol.source"), cell: (row) => row.source },
      ]}
      rows=${[...candles.last].reverse()}
      keyOf=${(row) => row.open_time}
      label=${t("explain.candles")}
      empty=${t("symbol.no_candles")}
    />
  <//>`;
}

function Took({ took, t }) {
  const { format } = t;
  if (!took) return null;
  const parts = STEPS.map((name, at) => ({
    name,
    label: t(`explain.took_${name}`),
    value: took[name] ?? 0,
    text: format.ms(took[name]),
    tone: at + 3,
  }));
  const sum = parts.reduce((total, part) => total + part.value, 0);
  return html`<${Panel} title=${t("explain.latency")} aside=${html`<strong>${format.ms(sum)}</strong>`}>
    <${StackedBar} parts=${parts} max=${sum} label=${t("explain.latency")} />
    <ul class="legend">
      ${parts.map((part) => html`<li key=${part.name}><i class="key tone-${part.tone}" aria-hidden="true"></i> ${part.label} <strong>${part.text}</strong></li>`)}
    </ul>
  <//>`;
}

function Publication({ outbox, t }) {
  return html`<${Panel} title=${t("explain.publication")}>
    ${!outbox && html`<p class="muted">${t("explain.not_published")}</p>`}
    ${
      outbox &&
      html`<p>
        ${
          outbox.published_at
            ? t("explain.published", { id: outbox.id, time: t.format.daySecond(outbox.published_at) })
            : t("explain.waits", { id: outbox.id })
        }
      </p>
      <pre class="payload" tabindex="0">${pretty(outbox.payload)}</pre>`
    }
  <//>`;
}

function Model({ facts, t }) {
  const { model, decision } = facts;
  return html`<${Panel} title=${t("models.model")}>
    <p class="strong">${model.model_id || t("models.none")}</p>
    ${model.note && html`<p class="muted">${model.note}</p>`} ${model.problem && html`<p class="note bad">${model.problem}</p>`}
    ${
      decision &&
      html`<dl class="pairs">
      ${["signal_id", "seq", "schema_hash", "label_hash", "engine_ver"].map((name) => html`<div key=${name}><dt>${name}</dt><dd class="mono">${decision[name]}</dd></div>`)}
    </dl>`
    }
  <//>`;
}

/** What the market made of a signal, whether it was traded or not. */
function Outcome({ facts, t }) {
  const { decision, outcome } = facts;
  if (decision?.status !== "ok") return null;
  const { format } = t;
  return html`<${Panel} title=${t("explain.outcome")} full data-testid="explain-outcome">
    <p class="muted">${t("explain.outcome_text")}</p>
    ${!outcome && html`<p class="muted empty">${t("explain.no_outcome")}</p>`}
    ${
      outcome &&
      html`<dl class="figures">
      <${Figure} name=${t("explain.ended_by")} value=${said(t, "exit", outcome.reason)} />
      <${Figure} name=${t("explain.ended_at")} value=${format.dayMinute(outcome.t_exit)} />
      <${Figure}
        name=${t("explain.ret_net")}
        value=${html`<${Money} value=${outcome.ret_net * 10_000} t=${t} digits=${1} testid="outcome-net" />`}
      />
      <${Figure} name=${t("explain.mfe")} value=${format.signed(outcome.mfe * 10_000, 1)} />
      <${Figure} name=${t("explain.mae")} value=${format.signed(outcome.mae * 10_000, 1)} />
    </dl>`
    }
  <//>`;
}

/** The signal's way on: refused, or order, trades, stop and exit. */
function Traded({ trading, t }) {
  const { format } = t;
  if (!trading || !(trading.refusals.length || trading.positions.length)) {
    return html`<${Panel} title=${t("explain.trade")} full><p class="muted empty">${t("explain.no_trade")}</p><//>`;
  }
  return html`<${Panel} title=${t("explain.trade")} full data-testid="explain-trade">
    ${trading.refusals.map((each, at) => html`<p class="note warn" key=${at}>${t("explain.refused", { account: t(`mode.${each.account}`), rule: said(t, "rule", each.rule) })}: ${each.detail}</p>`)}
    ${trading.positions.map((each) => {
      const net = Number(each.realized_pnl) - Number(each.fees) + Number(each.funding);
      const orders = trading.orders.filter((order) => order.account === each.account);
      const fills = trading.fills.filter((fill) => fill.account === each.account);
      return html`<section key=${each.account} class="traded" aria-label=${t(`mode.${each.account}`)}>
        <h3><${ModeBadge} mode=${each.account} t=${t} /> <${Side} side=${each.side} t=${t} /></h3>
        <dl class="figures">
          <${Figure} name=${t("col.quantity")} value=${format.quantity(each.opened_quantity)} />
          <${Figure} name=${t("col.entry")} value=${format.price(each.entry_price)} />
          <${Figure} name=${t("col.target")} value=${format.price(each.target)} />
          <${Figure} name=${t("col.stop")} value=${format.price(each.stop)} />
          <${Figure} name=${t("col.protective")} value=${format.price(each.protective_stop)} />
          <${Figure} name=${t("col.naked")} value=${format.age(each.naked_ms / 1000)} />
          <${Figure} name=${t("col.exit")} value=${each.exit_price ? format.price(each.exit_price) : said(t, "position_status", each.status)} />
          <${Figure} name=${t("col.why")} value=${said(t, "exit", each.exit_reason) || format.none} />
          <${Figure} name=${t("explain.net")} value=${html`<${Money} value=${each.closed_at ? net : null} t=${t} digits=${4} />`} />
        </dl>
        <${Table}
          columns=${[
            { id: "time", label: t("col.time"), cell: (row) => format.daySecond(row.created_at) },
            { id: "leg", label: t("col.leg"), cell: (row) => said(t, "leg", row.leg) },
            { id: "kind", label: t("col.kind"), cell: (row) => `${said(t, "kind", row.kind.toLowerCase())} ${word(t, row.side)}` },
            { id: "status", label: t("col.status"), cell: (row) => said(t, "order_status", row.status) },
            {
              id: "filled",
              label: t("col.filled"),
              right: true,
              cell: (row) => `${format.quantity(row.filled)} / ${format.quantity(row.quantity)}`,
            },
            {
              id: "expected",
              label: t("explain.expected"),
              right: true,
              cell: (row) => format.price(row.expected_price),
            },
            { id: "average", label: t("col.average"), right: true, cell: (row) => format.price(row.average_price) },
            { id: "detail", label: t("col.detail"), wide: true, cell: (row) => row.detail },
          ]}
          rows=${orders}
          keyOf=${(row) => row.client_id}
          label=${t("explain.orders")}
          empty=${t("explain.no_orders")}
        />
        ${
          fills.length > 0 &&
          html`<ul class="plain-list">
          ${fills.map(
            (fill) => html`<li key=${fill.trade_id}>
            ${format.daySecond(fill.traded_at)} ${word(t, fill.side)} ${format.quantity(fill.quantity)} @ ${format.price(fill.price)},${" "}
            <span class="muted">${t("col.fee")} ${format.quantity(fill.fee)} ${fill.fee_asset}</span>
          </li>`,
          )}
        </ul>`
        }
      </section>`;
    })}
  <//>`;
}

function significant(t, value) {
  if (value === null || value === undefined) return t.format.none;
  return new Intl.NumberFormat(t.language, { maximumSignificantDigits: 6 }).format(value);
}

/** buy or sell */
function word(t, side) {
  return said(t, "side", String(side).toLowerCase());
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // what was sent is shown as it is
  }
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
