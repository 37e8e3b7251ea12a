// Accounts, positions, orders, fills: what is at risk, what became of it, and what was refused.
import { html, useMemo, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { useSecond } from "../header.js";
import { useLive } from "../live.js";
import { ModeBadge, Money, Side } from "../parts/badge.js";
import { LineChart } from "../parts/chart.js";
import { Figure, Page, Panel, recent, withoutTables } from "../parts/page.js";
import { said } from "../parts/said.js";
import { Table } from "../parts/table.js";

const LOOK_EVERY_S = 3;
const ACCOUNTS = ["paper", "live"];

export default function Trading({ live, api, t, open }) {
  const { data, error } = useApi(api, "trading", {}, LOOK_EVERY_S);
  useLive(live, ["overview"], 1000);
  useSecond();
  const [account, setAccount] = useState("all");
  const shown = (row) => account === "all" || row.account === account;
  const toSymbol = (row) => open(`#/symbol/${row.symbol}`);
  const facts = useMemo(() => (data ? factsOf(data) : null), [data]);
  const columns = useMemo(() => columnsOf(t, live), [t, live]);
  const aside = html`<div class="chips" role="group" aria-label=${t("col.account")}>
    ${["all", ...ACCOUNTS].map((each) => html`<button
      key=${each}
      type="button"
      class="chip"
      aria-pressed=${account === each ? "true" : "false"}
      onClick=${() => setAccount(each)}
      data-testid=${`account-${each}`}
    >
      ${t(each === "all" ? "overview.all" : `mode.${each}`)}
    </button>`)}
  </div>`;
  const table = (id, rows, more = {}) =>
    html`<${Table}
      columns=${columns[id]}
      rows=${rows.filter(shown)}
      label=${t(`trading.${id}`)}
      empty=${t(`trading.no_${id}`)}
      ...${more}
    />`;
  return html`<${Page} name="trading" title=${t("page.trading")} ready=${Boolean(data)} error=${error ?? withoutTables(data)} aside=${aside} t=${t}>
    ${facts &&
    html`<div class="panels firsts">
        ${facts.accounts.filter(shown).map((each) => html`<${AccountPanel} key=${each.account} facts=${each} t=${t} />`)}
        <${Panel} title=${t("trading.modes")} data-testid="trading-modes">
          <${Table}
            columns=${columns.modes}
            rows=${facts.modes}
            keyOf=${(row) => row.symbol ?? ""}
            label=${t("trading.modes")}
            empty=${t("trading.no_modes")}
          />
        <//>
      </div>
      <div class="panels broad">
        <${Panel} title=${t("trading.positions")} full data-testid="trading-positions">
          ${table("positions", facts.positions, {
            keyOf: (row) => `${row.account}${row.symbol}`,
            onRow: toSymbol,
            rowProps: (row) => ({ "data-testid": `position-${row.account}-${row.symbol}` }),
          })}
        <//>
        <${Panel} title=${t("trading.equity")} full>
          <${Equity} curves=${facts.curves} account=${account} t=${t} />
        <//>
        <${Panel}
          title=${t("trading.closed")}
          full
          aside=${html`<${Sums} sums=${facts.sums.filter(shown)} t=${t} />`}
          data-testid="trading-closed"
        >
          ${table("closed", facts.closed, { keyOf: (row) => `${row.account}${row.position_id}`, onRow: toSymbol })}
        <//>
        <${Panel} title=${t("trading.orders")}>${table("orders", facts.orders, { keyOf: orderKey })}<//>
        <${Panel} title=${t("trading.protections")}>
          ${table("protections", facts.protections, { keyOf: (row) => `${row.account}${row.symbol}` })}
        <//>
        <${Panel} title=${t("trading.fills")}>${table("fills", facts.fills)}<//>
        <${Panel} title=${t("trading.refusals")}>${table("refusals", facts.refusals)}<//>
        ${account !== "paper" &&
        html`<${Panel} title=${t("trading.twins")} aside=${html`<${Twins} rows=${facts.twins} t=${t} />`}>
          <${Table}
            columns=${columns.twins}
            rows=${facts.twins}
            keyOf=${(row) => row.client_id}
            label=${t("trading.twins")}
            empty=${t("trading.no_twins")}
          />
        <//>`}
      </div>`}
  <//>`;
}

function AccountPanel({ facts, t }) {
  const naked = facts.naked_ms ?? null; // not known without the worker
  return html`<${Panel}
    title=${t(`trading.account_${facts.account}`)}
    aside=${html`<${ModeBadge} mode=${facts.account} t=${t} />`}
    data-testid=${`account-facts-${facts.account}`}
  >
    ${
      facts.away &&
      html`<p class="note warn warn-text" data-testid=${`account-away-${facts.account}`}>
      ${t("trading.not_here", { why: t(`trading.away_${facts.away}`) })}
    </p>`
    }
    <dl class="figures">
      <${Figure} name=${t("header.equity")} value=${t.format.usdt(facts.equity)} testid=${`equity-${facts.account}`} />
      <${Figure} name=${t("trading.wallet")} value=${t.format.usdt(facts.wallet)} />
      <${Figure}
        name=${t("trading.unrealized")}
        value=${html`<${Money} value=${facts.unrealized_pnl ?? facts.unrealized} t=${t} />`}
      />
      <${Figure} name=${t("trading.open")} value=${t.format.number(facts.positions.length)} />
      <${Figure}
        name=${t("trading.naked")}
        hint=${t("trading.naked_hint")}
        tone=${naked ? "bad" : ""}
        value=${html`${naked ? "! " : ""}${t.format.age(naked === null ? null : naked / 1000)}`}
        testid=${`naked-${facts.account}`}
      />
      <${Figure}
        name=${t("trading.naked_longest")}
        value=${t.format.age((facts.naked_ms_longest ?? null) === null ? null : facts.naked_ms_longest / 1000)}
      />
    </dl>
    ${blockedText(facts.blocked) && html`<p class="note warn warn-text">${t("trading.blocked")}: ${blockedText(facts.blocked)}</p>`}
    ${facts.rows_error &&
    html`<p class="note bad">${t("trading.unwritten", { n: facts.unwritten })}: ${facts.rows_error}</p>`}
  <//>`;
}

function Equity({ curves, account, t }) {
  const wanted = account === "all" ? Object.keys(curves) : [account];
  const drawn = wanted.filter((each) => curves[each]?.length > 1);
  const [data, series] = useMemo(() => {
    const minutes = [...new Set(drawn.flatMap((each) => curves[each].map(([minute]) => minute)))].sort((a, b) => a - b);
    const lines = drawn.map((each) => {
      const known = new Map(curves[each]);
      return minutes.map((minute) => known.get(minute) ?? null);
    });
    const named = drawn.map((each, at) => ({
      label: t(`mode.${each}`),
      colour: each === "live" ? "warn" : "accent",
      dash: at ? [6, 3] : undefined,
      fill: drawn.length === 1,
      spanGaps: true,
    }));
    return [[minutes, ...lines], named];
  }, [curves, drawn.join(), t]);
  if (!drawn.length) return html`<p class="muted empty">${t("trading.no_equity")}</p>`;
  return html`<${LineChart} data=${data} series=${series} label=${t("trading.equity")} value=${t.format.usdt} t=${t} />`;
}

/** What the closed positions of the last 30 days brought, by account: money of paper and real money are not one sum. */
function Sums({ sums, t }) {
  return html`<span class="sums">
    ${sums
      .filter((each) => each.closed > 0)
      .map((each) => {
        const n = t.format.number(each.closed);
        const won = t.format.percent(each.won / each.closed, 0);
        return html`<span class="muted" key=${each.account} data-testid=${`sum-${each.account}`} data-value=${each.net}>
        <${ModeBadge} mode=${each.account} t=${t} /> ${t("trading.closed_sum", { days: each.days, n, won })}${" "}
        <${Money} value=${each.net} t=${t} />
      </span>`;
      })}
  </span>`;
}

function Twins({ rows, t }) {
  if (!rows.length) return null;
  const values = rows.map((row) => Number(row.difference_bps)).sort((a, b) => a - b);
  const middle = values[Math.floor(values.length / 2)];
  return html`<span class="muted" title=${t("trading.twins_hint")}>
    ${t("trading.twins_median", { bps: t.format.signed(middle), n: t.format.number(rows.length) })}
  </span>`;
}

/** The answer in the shape that is drawn: rows with their account, newest first. */
function factsOf(data) {
  const accounts = ACCOUNTS.filter((each) => data.accounts?.[each]).map((account) => ({
    ...data.accounts[account],
    account,
    positions: (data.accounts[account].positions ?? []).map((row) => ({ account, ...row })),
    away: data.accounts[account].told_by === "tables" ? whyAway(data, account) : null,
  }));
  const history = data.history ?? {};
  const newestFirst = (rows, time) => [...(rows ?? [])].sort((one, other) => (other[time] ?? 0) - (one[time] ?? 0));
  const orders = data.orders_open ?? [];
  const positions = accounts.flatMap((each) => each.positions);
  return {
    accounts,
    modes: data.modes ?? [],
    positions,
    protections: positions.map((row) => ({ ...row, order: stopOf(orders, row) })),
    orders: newestFirst(orders, "created_at"),
    closed: newestFirst(
      (history.positions ?? []).filter((row) => row.status === "closed"),
      "closed_at",
    ),
    sums: ACCOUNTS.filter((each) => data.sums?.[each]).map((account) => ({ account, ...data.sums[account] })),
    fills: newestFirst(history.fills, "traded_at"),
    refusals: newestFirst(history.refusals, "at"),
    twins: newestFirst(data.twins, "at"),
    curves: data.equity ?? {},
  };
}

/** Why nobody looks after an account here, so that the tables tell of it: a word of trading.away_…. */
function whyAway(data, account) {
  if (data.keys === null || data.keys === undefined) return "worker";
  if ((data.waiting_for_lease ?? []).includes(account)) return "lease";
  return account === "live" && !data.keys ? "keys" : "other";
}

/** The newest of its orders that is a stop. */
function stopOf(orders, position) {
  const isOfIt = (row) => row.leg === "stop" && row.symbol === position.symbol && row.account === position.account;
  return orders.filter(isOfIt).sort((one, other) => other.created_at - one.created_at)[0];
}

function columnsOf(t, live) {
  const { format } = t;
  const now = () => live.now() ?? Date.now();
  const column = (id, cell, more = {}) => ({ id, label: t(`col.${id}`), cell, ...more });
  const right = { right: true };
  const price = (id, field) => column(id, (row) => format.price(row[field]), right);
  const account = column("account", (row) => html`<${ModeBadge} mode=${row.account} t=${t} />`, {
    value: (row) => row.account,
  });
  const symbol = column("symbol", (row) => row.symbol, { value: (row) => row.symbol, sticky: true });
  const time = (field) =>
    column("time", (row) => html`<time title=${format.iso(row[field])}>${recent(t, row[field], now())}</time>`, {
      value: (row) => row[field],
      downFirst: true,
    });
  const side = column("side", (row) => html`<${Side} side=${sideOf(row.side)} t=${t} />`, {
    value: (row) => sideOf(row.side),
  });
  const order = column("side", (row) => orderSide(t, row.side), { value: (row) => sideOf(row.side) });
  const quantity = (field = "quantity") => column("quantity", (row) => format.quantity(row[field]), right);
  return {
    modes: [
      column("symbol", (row) => html`<b>${row.symbol || t("mode_dialog.all")}</b>`),
      column("mode", (row) => html`<${ModeBadge} mode=${row.now ?? row.mode} t=${t} />`),
      column("until", (row) => (row.until ? format.dayMinute(row.until) : "–")),
      column("positions", (row) => (row.positions ? t(`positions.${row.positions}`) : "")),
      column("since", (row) => format.dayMinute(row.changed_at || null)),
      column("by", (row) => row.by),
      column("reason", (row) => row.reason, { wide: true }),
    ],
    positions: [
      account,
      symbol,
      side,
      quantity(),
      price("entry", "entry_price"),
      price("mark", "mark_price"),
      column("pnl", (row) => html`<${Money} value=${row.unrealized_pnl} t=${t} />`, {
        ...right,
        value: (row) => row.unrealized_pnl,
        downFirst: true,
      }),
      price("target", "target"),
      price("stop", "stop"),
      column("protective", (row) => protective(t, row), right),
      column("naked", (row) => naked(t, row), { ...right, value: (row) => row.naked_ms, downFirst: true }),
      column("age", (row) => format.age(row.opened_at ? (now() - row.opened_at) / 1000 : null), {
        ...right,
        value: (row) => -row.opened_at,
      }),
      column("left", (row) => (row.deadline ? format.countdown(row.deadline - now()) : format.none), right),
      column("status", (row) => said(t, "position_status", row.status)),
    ],
    protections: [
      account,
      symbol,
      column("protective", (row) => protective(t, row), right),
      column("distance", (row) => distance(t, row), right),
      column("naked", (row) => naked(t, row), right),
      column("status", (row) => stopState(t, row)),
    ],
    orders: [
      account,
      symbol,
      order,
      column("leg", (row) => said(t, "leg", row.leg)),
      column("kind", (row) => html`${said(t, "kind", String(row.kind).toLowerCase())}`),
      // A stop at the exchange closes whatever is open then, and has no quantity of its own.
      column("quantity", (row) => (Number(row.quantity) ? format.quantity(row.quantity) : t("trading.whole")), right),
      column("price", (row) => format.price(row.trigger_price ?? row.price), right),
      column("filled", (row) => format.quantity(row.filled), right),
      column("status", (row) => said(t, "order_status", row.status)),
      time("created_at"),
    ],
    closed: [
      { ...time("closed_at") },
      account,
      symbol,
      side,
      quantity("opened_quantity"),
      price("entry", "entry_price"),
      price("exit", "exit_price"),
      column("why", (row) => html`<span class="badge">${said(t, "exit", row.exit_reason)}</span>`, {
        value: (row) => row.exit_reason,
      }),
      column("net", (row) => html`<${Money} value=${netOf(row)} t=${t} />`, {
        ...right,
        hint: t("col.net_hint"),
        value: netOf,
        downFirst: true,
      }),
      column("fee", (row) => format.number(row.fees, 4), right),
      column("funding", (row) => format.signed(row.funding, 4), right),
      column("held", (row) => format.age(row.closed_at ? (row.closed_at - row.opened_at) / 1000 : null), {
        ...right,
        value: (row) => row.closed_at - row.opened_at,
      }),
      column("naked", (row) => format.age(row.naked_ms === null ? null : row.naked_ms / 1000), {
        ...right,
        value: (row) => row.naked_ms,
        downFirst: true,
      }),
    ],
    fills: [
      time("traded_at"),
      account,
      symbol,
      order,
      price("price", "price"),
      quantity(),
      column("fee", (row) => `${format.number(row.fee, 4)} ${row.fee_asset ?? ""}`, right),
      column("pnl", (row) => html`<${Money} value=${Number(row.realized_pnl)} t=${t} />`, right),
    ],
    refusals: [
      time("at"),
      account,
      symbol,
      column("rule", (row) => html`<span class="badge">${said(t, "rule", row.rule)}</span>`, { value: (row) => row.rule }),
      column("detail", (row) => row.detail, { wide: true }),
    ],
    twins: [
      time("at"),
      symbol,
      order,
      quantity(),
      price("live_price", "live_price"),
      price("paper_price", "paper_price"),
      column("difference", (row) => `${format.signed(row.difference_bps)} bp`, {
        ...right,
        value: (row) => Number(row.difference_bps),
        downFirst: true,
      }),
    ],
  };
}

/** Whether the worker tells of the position; else it is its row in the database, which knows no order. */
function isTold(row) {
  return typeof row.protected === "boolean";
}

function protective(t, row) {
  if (!isTold(row)) {
    if (!row.protective_stop) return t.format.none;
    return html`<span class="muted" title=${t("trading.stop_at_hint")}>
      ${t("trading.stop_at", { price: t.format.price(row.protective_stop) })}
    </span>`;
  }
  if (row.protective_stop) return t.format.price(row.protective_stop);
  return html`<span class="bad">! ${t("trading.no_stop")}</span>`;
}

function naked(t, row) {
  if (row.naked_ms === null || row.naked_ms === undefined) return t.format.none;
  return html`<span class=${row.naked_ms && row.protected === false ? "bad" : ""}>${t.format.age(row.naked_ms / 1000)}</span>`;
}

function stopState(t, row) {
  if (!isTold(row)) return said(t, "order_status", row.order?.status) || t.format.none;
  if (!row.protective_stop) return said(t, "order_status", "none");
  return said(t, "order_status", row.order?.status ?? (row.protected ? "new" : null)) || t.format.none;
}

/** How far the mark price is from the stop at the exchange. */
function distance(t, row) {
  if (!row.protective_stop || !row.mark_price) return t.format.none;
  const away = Math.abs(row.mark_price - row.protective_stop) / row.mark_price;
  return t("trading.away", { distance: t.format.percent(away, 2) });
}

function orderSide(t, side) {
  const turn = sideOf(side);
  if (!turn) return "";
  return html`<span class=${turn > 0 ? "up" : "down"}>
    <span aria-hidden="true">${turn > 0 ? "▲" : "▼"}</span> ${t(turn > 0 ? "side.buy" : "side.sell")}
  </span>`;
}

function sideOf(side) {
  if (typeof side === "number") return side;
  return { buy: 1, long: 1, sell: -1, short: -1 }[String(side).toLowerCase()] ?? 0;
}

function netOf(row) {
  return Number(row.realized_pnl ?? 0) - Number(row.fees ?? 0) + Number(row.funding ?? 0);
}

function blockedText(blocked) {
  if (!blocked) return "";
  return typeof blocked === "string" ? blocked : Object.values(blocked).join("; ");
}

function orderKey(row) {
  return `${row.account}${row.client_id}`;
}
