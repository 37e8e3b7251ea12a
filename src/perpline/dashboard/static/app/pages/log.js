// What happened: alarms as they come, changes of mode, differences from the exchange's books.
import { html, useMemo, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { useLive } from "../live.js";
import { Level, ModeBadge } from "../parts/badge.js";
import { Page, Panel, recent } from "../parts/page.js";
import { Table } from "../parts/table.js";

const LOOK_EVERY_S = 10;
const LEVELS = ["all", "warning", "error"];
const OWN_FIELDS = new Set(["action", "event", "level", "at", "logger", "timestamp", "runbook"]);
const MOST_SHOWN = 300;
/** The alarms of `perpline alerts`, each with a page docs/runbooks/NAME.md. A test compares them with its rules. */
const ALARMS = new Set([
  "worker_away",
  "worker_not_ready",
  "standby_lost",
  "decisions_missing",
  "close_to_signal_slow",
  "stream_stale",
  "gap_open",
  "weight_high",
  "clock_offset",
  "database_away",
  "redis_away",
  "spool_growing",
  "disk_low",
  "protective_stop_missing",
  "positions_unattended",
  "daily_loss_limit",
  "mode_changed",
  "model_drift",
  "parity_failed",
]);

export default function Log({ live, api, t }) {
  const { data, error } = useApi(api, "log", {}, LOOK_EVERY_S);
  useLive(live, ["log"], 500);
  const [filter, setFilter] = useState("");
  const [level, setLevel] = useState("all");
  const alarms = useMemo(() => together(data?.alarms ?? [], live.log), [data, live.log]);
  const wanted = filter.trim().toLowerCase();
  const has = (row) => !wanted || JSON.stringify(row).toLowerCase().includes(wanted);
  const shownAlarms = alarms.filter((row) => (level === "all" || levelOf(row) === level) && has(row)).slice(0, MOST_SHOWN);
  const columns = useMemo(() => columnsOf(t, live), [t, live]);
  const newestFirst = (rows, time) => [...(rows ?? [])].sort((one, other) => other[time] - one[time]);
  const aside = html`<div class="toolbar">
    <div class="chips" role="group" aria-label=${t("col.level")}>
      ${LEVELS.map((each) => html`<button
        key=${each}
        type="button"
        class="chip"
        aria-pressed=${level === each ? "true" : "false"}
        data-testid=${`level-${each}`}
        onClick=${() => setLevel(each)}
      >
        ${t(each === "all" ? "overview.all" : `level.${each}`)}
      </button>`)}
    </div>
    <label class="hidden" for="log-filter">${t("log.filter")}</label>
    <input
      id="log-filter"
      type="search"
      data-filter
      data-testid="log-filter"
      placeholder=${`${t("log.filter")}  /`}
      value=${filter}
      autocomplete="off"
      spellcheck=${false}
      onInput=${(event) => setFilter(event.target.value)}
    />
  </div>`;
  return html`<${Page} name="log" title=${t("page.log")} ready=${Boolean(data)} error=${error} aside=${aside} t=${t}>
    ${data?.unwatched &&
    html`<p class="note bad" role="alert" data-testid="unwatched">${t("log.unwatched")} (${data.unwatched})</p>`}
    ${data &&
    html`<div class="panels broad">
      <${Panel} title=${t("log.alarms")} full aside=${html`<span class="muted">${shownAlarms.length}</span>`}>
        <${Table}
          columns=${columns.alarms}
          rows=${shownAlarms}
          keyOf=${keyOf}
          label=${t("log.alarms")}
          empty=${t("log.no_alarms")}
          rowProps=${(row) => ({ "data-testid": `alarm-${nameOf(row)}` })}
        />
      <//>
      <${Panel} title=${t("log.modes")} data-testid="log-modes">
        <${Table}
          columns=${columns.modes}
          rows=${newestFirst(data.modes, "changed_at").filter(has)}
          label=${t("log.modes")}
          empty=${t("log.no_modes")}
        />
      <//>
      <${Panel} title=${t("log.reconciliations")}>
        <${Table}
          columns=${columns.reconciliations}
          rows=${newestFirst(data.reconciliations, "at").filter(has)}
          label=${t("log.reconciliations")}
          empty=${t("log.no_reconciliations")}
        />
      <//>
    </div>`}
  <//>`;
}

function columnsOf(t, live) {
  const { format } = t;
  const column = (id, cell, more = {}) => ({ id, label: t(`col.${id}`), cell, ...more });
  const time = (field) =>
    column("time", (row) => html`<time title=${format.iso(row[field])}>${recent(t, row[field], live.now() ?? Date.now())}</time>`, {
      value: (row) => row[field],
      downFirst: true,
    });
  const symbol = column("symbol", (row) => row.symbol || t("mode_dialog.all"), { value: (row) => row.symbol });
  return {
    alarms: [
      time("at"),
      column("level", (row) => html`<${Level} level=${levelOf(row)} t=${t} />`, { value: levelOf }),
      column("event", (row) => html`<code>${nameOf(row)}</code>`, { value: nameOf }),
      column("symbol", (row) => row.symbol ?? row.fields?.symbol ?? "", {
        value: (row) => row.symbol ?? row.fields?.symbol,
      }),
      column("detail", (row) => detailOf(t, row), { wide: true }),
      column("runbook", runbookOf),
    ],
    modes: [
      time("changed_at"),
      symbol,
      column("mode", (row) => html`<${ModeBadge} mode=${row.mode} t=${t} />`, { value: (row) => row.mode }),
      column("until", (row) => (row.until ? format.dayMinute(row.until) : format.none)),
      column("positions", (row) => (row.positions ? t(`positions.${row.positions}`) : "")),
      column("by", (row) => row.by, { value: (row) => row.by }),
      column("reason", (row) => row.reason, { wide: true }),
    ],
    reconciliations: [
      time("at"),
      column("account", (row) => html`<${ModeBadge} mode=${row.account} t=${t} />`, { value: (row) => row.account }),
      column("kind", (row) => (t.has(`difference.${row.kind}`) ? t(`difference.${row.kind}`) : row.kind), {
        value: (row) => row.kind,
      }),
      symbol,
      column("ours", (row) => row.ours, { right: true }),
      column("theirs", (row) => row.theirs, { right: true }),
      column("action", (row) => row.action, { wide: true }),
    ],
  };
}

/** Rows of both, each once, newest first: the socket and the request tell of the same events. */
function together(stored, heard) {
  const found = new Map([...stored, ...heard].map((row) => [keyOf(row), row]));
  return [...found.values()].sort((one, other) => other.at - one.at);
}

function keyOf(row) {
  return `${row.at} ${nameOf(row)} ${JSON.stringify(row.fields ?? "")}`;
}

function nameOf(row) {
  return row.event ?? "";
}

function levelOf(row) {
  return row.level ?? "warning";
}

/** What an alarm says, and when it was over; of a log event what it is about. */
function detailOf(t, row) {
  const { text, cleared_at: cleared, subject, ...more } = row.fields ?? {};
  if (text) {
    return html`${subject ? html`<b>${subject}</b> ` : ""}${text}
      ${cleared ? html` <span class="badge">${t("log.cleared", { time: t.format.dayMinute(cleared) })}</span>` : ""}`;
  }
  return Object.entries({ ...more, ...(subject ? { subject } : {}) })
    .filter(([name]) => !OWN_FIELDS.has(name) && name !== "symbol")
    .map(([name, value]) => html`<span class="fact" key=${name}><span class="muted">${name}</span> ${shownValue(value)}</span> `);
}

function shownValue(value) {
  return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}

/** Where the documents say what to do: an alarm has a page of its own, a log event a paragraph. */
function runbookOf(row) {
  const alarm = row.fields?.alarm ?? nameOf(row);
  const page = row.fields?.runbook ?? (ALARMS.has(alarm) ? `docs/runbooks/${alarm}.md` : null);
  const text = html`<code>${page ?? `docs/operations.md: ${nameOf(row)}`}</code>`;
  const url = String(row.runbook_url ?? "");
  return url.startsWith("https://") ? html`<a href=${url} target="_blank" rel="noopener noreferrer">${text}</a>` : text;
}
