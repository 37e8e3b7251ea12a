// What the data is worth: holes, differences, where rows come from, what is silent, what waits.
import { html, useMemo } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { useLive } from "../live.js";
import { Bar } from "../parts/bars.js";
import { Figure, Page, Panel, recent, withoutTables } from "../parts/page.js";
import { Table } from "../parts/table.js";

export default function Health({ live, api, t }) {
  const { data, error } = useApi(api, "health", {}, 5);
  useLive(live, ["overview"], 1000);
  const now = live.now() ?? Date.now();
  return html`<${Page} name="health" title=${t("health.title")} ready=${Boolean(data)} error=${error ?? withoutTables(data)} t=${t}>
    ${
      data &&
      html`<div class="panels two">
      <${Freshness} live=${live} t=${t} />
      <div class="column">
        <${Waiting} data=${data} now=${now} t=${t} />
        <${Room} room=${data.room} t=${t} />
      </div>
      ${!data.database_error && html`<${Gaps} data=${data} t=${t} />`}
      ${!data.database_error && html`<${Sources} sources=${data.sources ?? {}} t=${t} />`}
      <${Buffers} buffers=${data.buffers ?? {}} now=${now} t=${t} />
      ${!data.database_error && html`<${Revisions} rows=${data.revisions ?? []} t=${t} />`}
    </div>`
    }
  <//>`;
}

/** What should speak and is silent, and the oldest news of each stream. */
function Freshness({ live, t }) {
  const { format } = t;
  const isHeard = live.header.worker === "live" && live.state === "live"; // else nothing is known to be fresh
  const rows = [];
  const oldest = live.streams.map(() => ({ age: null, symbol: null, stale: 0 }));
  for (const symbol of live.symbols) {
    const row = live.rows.get(symbol);
    live.streams.forEach((stream, at) => {
      const age = row.ages?.[at] ?? null;
      if (age !== null && (oldest[at].age === null || age > oldest[at].age)) Object.assign(oldest[at], { age, symbol });
      if (row.stale?.includes(stream)) {
        oldest[at].stale += 1;
        rows.push({ symbol, stream, age });
      }
    });
  }
  return html`<${Panel}
    title=${t("health.freshness")}
    data-testid="freshness"
    aside=${
      isHeard
        ? html`<span class=${rows.length ? "bad strong" : "ok"}>
          ${rows.length ? `! ${t("health.stale_now", { n: format.number(rows.length) })}` : `✓ ${t("health.all_fresh")}`}
        </span>`
        : html`<span class="warn strong">? ${t("health.no_worker")}</span>`
    }
  >
    <div class="table-scroll" tabindex="0" role="region" aria-label=${t("health.freshness")}>
      <table>
        <caption class="hidden">${t("health.freshness")}</caption>
        <thead>
          <tr>
            <th scope="col">${t("health.stream")}</th>
            <th scope="col" class="right">${t("health.stale")}</th>
            <th scope="col" class="right">${t("health.oldest")}</th>
            <th scope="col">${t("col.symbol")}</th>
          </tr>
        </thead>
        <tbody>
          ${live.streams.map(
            (stream, at) => html`<tr key=${stream}>
            <th scope="row">${t(`stream.${stream}`)}</th>
            <td class="right ${oldest[at].stale ? "bad strong" : ""}">${isHeard ? format.number(oldest[at].stale) : format.none}</td>
            <td class="right">${format.age(oldest[at].age)}</td>
            <td>${oldest[at].symbol && html`<a href=${`#/symbol/${oldest[at].symbol}`}>${oldest[at].symbol}</a>`}</td>
          </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${
      rows.length > 0 &&
      html`<h3 class="sub">${t("health.silent")}</h3>
      <ul class="plain-list">
        ${rows.slice(0, 50).map(
          (row) => html`<li key=${`${row.symbol} ${row.stream}`}>
          <span class="bad strong" aria-hidden="true">!</span> <a href=${`#/symbol/${row.symbol}`}>${row.symbol}</a>${" "}
          ${t(`stream.${row.stream}`)} <span class="muted">${format.age(row.age)}</span>
        </li>`,
        )}
      </ul>`
    }
  <//>`;
}

function Waiting({ data, now, t }) {
  const { format } = t;
  const { spool, outbox } = data;
  const waiting = Object.values(data.buffers ?? {}).reduce((sum, each) => sum + (each.waiting ?? 0), 0);
  return html`<${Panel} title=${t("health.waiting")}>
    ${!spool && !outbox && html`<p class="muted">${t("health.no_worker")}</p>`}
    <dl class="figures">
      <${Figure} name=${t("health.buffered")} value=${data.buffers ? format.number(waiting) : format.none} />
      ${
        spool &&
        html`<${Figure} name=${t("health.spool_records")} value=${format.number(spool.records)} tone=${spool.records ? "warn" : ""} testid="spool-records" />
        <${Figure} name=${t("health.spool_oldest")} value=${format.age(spool.oldest_s)} />
        <${Figure} name=${t("health.spool_dropped")} value=${format.number(spool.dropped)} tone=${spool.dropped ? "bad" : ""} />`
      }
      ${
        outbox &&
        html`<${Figure} name=${t("health.outbox")} value=${format.number(outbox.pending)} tone=${outbox.failures ? "bad" : ""} />
        <${Figure} name=${t("health.published")} value=${format.number(outbox.published)} />
        <${Figure} name=${t("health.last_published")} value=${recent(t, outbox.last_published_ms, now)} />`
      }
    </dl>
    ${
      spool &&
      html`<p class="bar-line">
      <span class="muted">${t("health.spool_waits")}</span>
      <${Bar} value=${spool.bytes} max=${spool.max_bytes} tone=${spool.bytes > spool.max_bytes / 2 ? "bad" : ""} />
      <span>${format.bytes(spool.bytes)} / ${format.bytes(spool.max_bytes)}</span>
    </p>`
    }
    ${[spool?.error, outbox?.last_error].filter(Boolean).map((text) => html`<p class="note bad" key=${text}>${text}</p>`)}
  <//>`;
}

function Gaps({ data, t }) {
  const { format } = t;
  const rows = useMemo(
    () =>
      [...data.gaps].sort((a, b) => Boolean(a.repaired_at) - Boolean(b.repaired_at) || b.detected_at - a.detected_at),
    [data.gaps],
  );
  const columns = [
    {
      id: "state",
      label: t("health.state"),
      value: (row) => (row.repaired_at ? 1 : 0),
      cell: (row) =>
        row.repaired_at
          ? html`<span class="badge">✓ ${t("health.repaired")}</span>`
          : html`<span class="badge status-fault">! ${t("health.open")}</span>`,
    },
    {
      id: "symbol",
      label: t("col.symbol"),
      value: (row) => row.symbol,
      cell: (row) => html`<a href=${`#/symbol/${row.symbol}`}>${row.symbol}</a>`,
    },
    { id: "series", label: t("health.series"), value: (row) => row.series, cell: (row) => row.series },
    {
      id: "from",
      label: t("health.from"),
      value: (row) => row.from_time,
      cell: (row) => format.dayMinute(row.from_time),
    },
    {
      id: "long",
      label: t("health.long"),
      right: true,
      value: (row) => row.to_time - row.from_time,
      cell: (row) => format.age((row.to_time - row.from_time) / 1000),
    },
    { id: "cause", label: t("health.cause"), value: (row) => row.cause, cell: (row) => row.cause },
    {
      id: "by",
      label: t("health.repaired_by"),
      value: (row) => row.repaired_by,
      cell: (row) => row.repaired_by ?? t.format.none,
    },
    {
      id: "took",
      label: t("health.took"),
      right: true,
      value: (row) => (row.repaired_at ? row.repaired_at - row.detected_at : null),
      cell: (row) => (row.repaired_at ? format.age((row.repaired_at - row.detected_at) / 1000) : format.none),
    },
  ];
  return html`<${Panel}
    title=${t("health.gaps")}
    full
    data-testid="gaps"
    aside=${html`<span class=${data.open_gaps ? "bad strong" : "ok"} data-testid="open-gaps" data-value=${data.open_gaps}>
      ${data.open_gaps ? `! ${t("health.open_gaps", { n: format.number(data.open_gaps) })}` : `✓ ${t("health.no_open_gaps")}`}
    </span>`}
  >
    <div class="tall"><${Table} columns=${columns} rows=${rows} keyOf=${(row) => row.id} label=${t("health.gaps")} empty=${t("health.no_gaps")} /></div>
  <//>`;
}

function Sources({ sources, t }) {
  const { format } = t;
  const names = [...new Set(Object.values(sources).flatMap((each) => Object.keys(each)))].sort(
    (a, b) => (a === "ws" ? -1 : 0) - (b === "ws" ? -1 : 0) || a.localeCompare(b),
  );
  return html`<${Panel} title=${t("health.sources")}>
    ${names.length === 0 && html`<p class="muted empty">${t("health.no_rows")}</p>`}
    <ul class="keys-list legend" aria-hidden="true">
      ${names.map((name, at) => html`<li key=${name}><i class="key tone-${((at + 1) % 7) + 1}"></i> ${name}</li>`)}
    </ul>
    <dl class="bar-rows">
      ${Object.entries(sources).map(([table, counts]) => {
        const all = Object.values(counts).reduce((sum, each) => sum + each, 0);
        return html`<div key=${table}>
          <dt>${table}</dt>
          <dd>
            <span class="stacked thin" aria-hidden="true">
              ${names
                .map((name, at) => ({ name, at, share: ((counts[name] ?? 0) / (all || 1)) * 100 }))
                .filter((each) => each.share > 0)
                .map(
                  (each) => html`<span
                  key=${each.name}
                  class="stacked-part tone-${((each.at + 1) % 7) + 1}"
                  style=${{ width: `${Math.max(0.6, each.share)}%` }}
                ></span>`,
                )}
            </span>
            <small>${names
              .filter((name) => counts[name])
              .map((name) => `${name} ${format.number(counts[name])}`)
              .join(" · ")}</small>
          </dd>
        </div>`;
      })}
    </dl>
  <//>`;
}

function Buffers({ buffers, now, t }) {
  const { format } = t;
  const rows = Object.entries(buffers).map(([table, each]) => ({ table, ...each }));
  const columns = [
    { id: "table", label: t("health.table"), value: (row) => row.table, cell: (row) => row.table },
    {
      id: "waiting",
      label: t("health.waits"),
      right: true,
      value: (row) => row.waiting,
      cell: (row) => format.number(row.waiting),
    },
    {
      id: "written",
      label: t("health.written"),
      right: true,
      value: (row) => row.written,
      cell: (row) => format.number(row.written),
    },
    {
      id: "dropped",
      label: t("health.dropped"),
      right: true,
      value: (row) => row.dropped,
      cell: (row) => html`<span class=${row.dropped ? "bad strong" : ""}>${format.number(row.dropped)}</span>`,
    },
    {
      id: "last",
      label: t("health.last_write"),
      right: true,
      value: (row) => row.last_write_ms,
      cell: (row) => recent(t, row.last_write_ms, now),
    },
  ];
  return html`<${Panel} title=${t("health.buffers")}>
    <${Table} columns=${columns} rows=${rows} keyOf=${(row) => row.table} label=${t("health.buffers")} empty=${t("health.no_worker")} />
  <//>`;
}

function Room({ room, t }) {
  const { format } = t;
  if (!room) return html`<${Panel} title=${t("health.room")}><p class="muted empty">${t("health.no_worker")}</p><//>`;
  const used = room.disk_bytes - room.disk_free_bytes;
  return html`<${Panel} title=${t("health.room")}>
    <p class="bar-line">
      <span class="muted">${room.disk ?? ""}</span>
      <${Bar} value=${used} max=${room.disk_bytes} tone=${room.low ? "bad" : ""} />
      <span>${t("health.free", { free: format.bytes(room.disk_free_bytes), all: format.bytes(room.disk_bytes) })}</span>
    </p>
    <dl class="figures">
      <${Figure} name=${t("health.database")} value=${format.bytes(room.database_bytes)} />
      <${Figure} name=${t("health.spool_disk")} hint=${t("health.spool_disk_hint")} value=${format.bytes(room.spool_bytes)} />
      <${Figure} name=${t("health.growth")} value=${format.bytes(room.growth_bytes_per_day)} />
      <${Figure} name=${t("health.days_left")} value=${format.number(room.days_until_full)} />
    </dl>
    ${room.low && html`<p class="note bad">${room.low}</p>`}
  <//>`;
}

function Revisions({ rows, t }) {
  const { format } = t;
  const columns = [
    { id: "seen", label: t("health.seen"), value: (row) => row.seen_at, cell: (row) => format.daySecond(row.seen_at) },
    {
      id: "symbol",
      label: t("col.symbol"),
      value: (row) => row.symbol,
      cell: (row) => html`<a href=${`#/symbol/${row.symbol}`}>${row.symbol}</a>`,
    },
    { id: "series", label: t("health.series"), value: (row) => row.series, cell: (row) => row.series },
    { id: "time", label: t("health.of"), value: (row) => row.time, cell: (row) => format.dayMinute(row.time) },
    { id: "field", label: t("health.field"), value: (row) => row.field, cell: (row) => row.field },
    { id: "old", label: t("health.old"), right: true, cell: (row) => row.old },
    { id: "new", label: t("health.new"), right: true, cell: (row) => row.new },
    { id: "sources", label: t("health.source"), cell: (row) => row.sources },
  ];
  return html`<${Panel} title=${t("health.revisions")} full>
    <p class="muted">${t("health.revisions_text")}</p>
    <div class="tall">
      <${Table}
        columns=${columns}
        rows=${rows}
        keyOf=${(row) => `${row.symbol} ${row.series} ${row.time} ${row.field} ${row.new}`}
        label=${t("health.revisions")}
        empty=${t("health.no_revisions")}
      />
    </div>
  <//>`;
}
