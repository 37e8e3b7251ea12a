// What decides, what is tried beside it, and whether it still fits the market.
import { html, useMemo, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { Bar } from "../parts/bars.js";
import { Figure, Page, Panel } from "../parts/page.js";
import { Table } from "../parts/table.js";

const SHOWN_COLUMNS = 15;
const DAY_MS = 86_400_000;

export default function Models({ api, t }) {
  const { data, error } = useApi(api, "models", {}, 10);
  return html`<${Page} name="models" title=${t("models.title")} ready=${Boolean(data)} error=${error} t=${t}>
    ${
      data &&
      html`<div class="panels two">
      <div class="column">
        <${Champion} data=${data} t=${t} />
        <${Shadows} data=${data} t=${t} />
        <${Calibration} calibration=${data.calibration ?? {}} t=${t} />
      </div>
      <${Drift} drift=${data.drift} isAway=${data.worker === false} t=${t} />
      <${Deployments} rows=${data.deployments ?? []} t=${t} />
      <${Known} data=${data} t=${t} />
    </div>`
    }
  <//>`;
}

function Champion({ data, t }) {
  const { champion } = data;
  const { format } = t;
  return html`<${Panel} title=${t("models.champion")} data-testid="champion">
    ${
      !champion?.model_id &&
      html`<p class="muted empty">${t(data.worker === false ? "models.not_known" : "models.none")}</p>`
    }
    ${
      champion &&
      html`<p class="model-name strong">${champion.model_id} <${ReportLink} id=${champion.model_id} data=${data} t=${t} /></p>
      <dl class="figures">
        <${Figure} name=${t("models.since")} value=${champion.since ? format.dayMinute(champion.since) : t("models.ships")} />
        ${
          data.drift?.today &&
          html`<${Figure} name=${t("models.signals_today")} value=${format.number(data.drift.today.signals)} tone=${data.drift.today.signals_unusual ? "bad" : ""} />
          <${Figure} name=${t("models.signals_usual")} value=${format.number(data.drift.today.signals_usual)} />`
        }
      </dl>
      ${champion.note && html`<p class="muted">${champion.note}</p>`} ${champion.reason && html`<p class="note warn">${champion.reason}</p>`}`
    }
    ${Object.entries(data.refused ?? {}).map(
      ([slot, why]) => html`<p class="note bad" key=${slot} data-testid=${`refused-${slot}`}>
      <strong>! ${t("models.refused", { slot })}</strong><br />${typeof why === "string" ? why : JSON.stringify(why)}
    </p>`,
    )}
  <//>`;
}

function Shadows({ data, t }) {
  const { format } = t;
  const rows = Object.entries(data.shadows ?? {}).map(([slot, each]) => ({ slot, ...each }));
  const columns = [
    { id: "slot", label: t("models.slot"), cell: (row) => row.slot, value: (row) => row.slot },
    {
      id: "model",
      label: t("models.model"),
      wide: true,
      cell: (row) => html`${row.model_id} <${ReportLink} id=${row.model_id} data=${data} t=${t} />`,
      value: (row) => row.model_id,
    },
    { id: "since", label: t("models.since"), cell: (row) => format.dayMinute(row.since), value: (row) => row.since },
    {
      id: "rows",
      label: t("models.rows"),
      right: true,
      cell: (row) => format.number(row.rows),
      value: (row) => row.rows,
    },
    { id: "note", label: t("models.note"), wide: true, cell: (row) => row.note || row.reason },
  ];
  return html`<${Panel} title=${t("models.shadows")}>
    <p class="muted">${t("models.shadows_text")}</p>
    <${Table} columns=${columns} rows=${rows} keyOf=${(row) => row.slot} label=${t("models.shadows")} empty=${t(data.worker === false ? "models.not_known" : "models.no_shadows")} />
  <//>`;
}

function Drift({ drift, isAway, t }) {
  const [day, setDay] = useState("today");
  const [all, setAll] = useState(false);
  const { format } = t;
  const facts = drift?.[day];
  const rows = useMemo(() => {
    const over = new Set(facts?.drifting ?? []);
    return Object.entries(facts?.psi ?? {})
      .map(([name, psi]) => ({ name, psi, missing: facts.missing?.[name] ?? null, over: over.has(name) }))
      .sort((a, b) => b.over - a.over || b.psi - a.psi);
  }, [facts]);
  const most = Math.max(0.25, ...rows.map((row) => row.psi));
  const chosen =
    drift &&
    html`<div class="chips" role="group" aria-label=${t("models.day")}>
    ${["today", "yesterday"].map(
      (each) => html`<button
      key=${each}
      type="button"
      class="chip"
      aria-pressed=${String(day === each)}
      onClick=${() => setDay(each)}
    >
      ${t(`models.${each}`)}
    </button>`,
    )}
  </div>`;
  return html`<${Panel} title=${t("models.drift")} aside=${chosen} data-testid="drift">
    <p class="muted">${t("models.drift_text")}</p>
    ${!facts && html`<p class="muted empty">${t(isAway ? "models.not_known" : "models.no_drift")}</p>`}
    ${
      facts &&
      html`<dl class="figures">
        <${Figure} name=${t("models.day")} value=${format.day(facts.day * DAY_MS)} />
        <${Figure} name=${t("models.rows")} value=${format.number(facts.rows)} />
        <${Figure} name=${t("models.minutes")} value=${format.number(facts.minutes)} />
        <${Figure} name=${t("models.drifting")} value=${facts.judged ? format.number(facts.drifting.length) : t("models.not_judged")} tone=${facts.drifting.length ? "warn" : ""} />
      </dl>
      <div class="table-scroll whole" tabindex="0" role="region" aria-label=${t("models.drift")}>
        <table>
          <caption class="hidden">${t("models.drift")}</caption>
          <thead>
            <tr>
              <th scope="col">${t("models.column")}</th>
              <th scope="col" class="right">PSI</th>
              <th scope="col"><span class="hidden">${t("models.bar")}</span></th>
              <th scope="col" class="right">${t("models.missing")}</th>
            </tr>
          </thead>
          <tbody>
            ${(all ? rows : rows.slice(0, SHOWN_COLUMNS)).map(
              (row) => html`<tr key=${row.name}>
              <th scope="row">${row.over && html`<span class="bad strong" title=${t("models.is_drifting")}>! </span>`}${row.name}</th>
              <td class="right ${row.over ? "bad strong" : ""}">${format.number(row.psi, 3)}</td>
              <td class="bar-cell"><${Bar} value=${row.psi} max=${most} tone=${row.over ? "bad" : ""} /></td>
              <td class="right">${format.percent(row.missing, 1)}</td>
            </tr>`,
            )}
          </tbody>
        </table>
      </div>
      ${
        rows.length > SHOWN_COLUMNS &&
        html`<button type="button" class="quiet" aria-expanded=${String(all)} onClick=${() => setAll(!all)}>
        ${all ? t("models.fewer") : t("models.all_columns", { n: format.number(rows.length) })}
      </button>`
      }`
    }
  <//>`;
}

/** What was promised against what came, by model; a dot's size is the number of signals in it. */
function Calibration({ calibration, t }) {
  const { format } = t;
  const known = Object.entries(calibration)
    .map(([model, bins]) => ({ model, bins }))
    .filter((each) => each.bins.length);
  if (!known.length) {
    return html`<${Panel} title=${t("models.calibration")}><p class="muted empty">${t("models.no_outcomes")}</p><//>`;
  }
  const [width, height, left, top] = [420, 300, 46, 10];
  const [right, bottom] = [width - 12, height - 38];
  const bins = known.flatMap((each) => each.bins);
  const values = bins.flatMap((bin) => [bin.p_mean, bin.hit_rate]);
  const low = Math.max(0, Math.floor(Math.min(...values) * 10) / 10);
  const high = Math.min(1, Math.ceil(Math.max(...values) * 10) / 10);
  const x = (p) => left + ((p - low) / (high - low || 1)) * (right - left);
  const y = (p) => bottom - ((p - low) / (high - low || 1)) * (bottom - top);
  const most = Math.max(...bins.map((bin) => bin.n));
  const ticks = [];
  for (let tick = low; tick <= high + 1e-9; tick += high - low > 0.5 ? 0.2 : 0.1) ticks.push(tick);
  return html`<${Panel} title=${t("models.calibration")} data-testid="calibration">
    <p class="muted">${t("models.calibration_text")}</p>
    <svg class="calibration" viewBox="0 0 ${width} ${height}" role="img" aria-label=${t("models.calibration")}>
      ${ticks.map(
        (tick) => html`<g key=${tick}>
        <line class="grid" x1=${left} x2=${right} y1=${y(tick)} y2=${y(tick)} />
        <line class="grid" x1=${x(tick)} x2=${x(tick)} y1=${top} y2=${bottom} />
        <text x=${left - 6} y=${y(tick) + 4} text-anchor="end">${format.percent(tick, 0)}</text>
        <text x=${x(tick)} y=${bottom + 16} text-anchor="middle">${format.percent(tick, 0)}</text>
      </g>`,
      )}
      <line class="ideal" x1=${x(low)} y1=${y(low)} x2=${x(high)} y2=${y(high)} />
      <text x=${(left + right) / 2} y=${height - 4} text-anchor="middle">${t("models.predicted")}</text>
      <text x="11" y=${(top + bottom) / 2} text-anchor="middle" transform="rotate(-90 11 ${(top + bottom) / 2})">${t("models.came")}</text>
      ${known.map(
        (each, at) => html`<g key=${each.model} class="line-${(at % 5) + 1}">
        <polyline points=${each.bins.map((bin) => `${x(bin.p_mean)},${y(bin.hit_rate)}`).join(" ")} />
        ${each.bins.map(
          (
            bin,
          ) => html`<circle key=${bin.p_mean} cx=${x(bin.p_mean)} cy=${y(bin.hit_rate)} r=${2.5 + 5 * Math.sqrt(bin.n / most)}>
          <title>${`${each.model}: ${format.percent(bin.p_mean, 1)} → ${format.percent(bin.hit_rate, 1)}, n ${format.number(bin.n)}`}</title>
        </circle>`,
        )}
      </g>`,
      )}
    </svg>
    <ul class="legend">
      ${known.map(
        (each, at) => html`<li key=${each.model}>
        <i class="key key-${(at % 5) + 1}" aria-hidden="true"></i> ${each.model}, n ${format.number(each.bins.reduce((sum, bin) => sum + bin.n, 0))}
      </li>`,
      )}
      <li class="muted"><i class="dash" aria-hidden="true"></i> ${t("models.ideal")}</li>
    </ul>
    <details>
      <summary>${t("symbol.as_table")}</summary>
      <${Table}
        columns=${[
          { id: "model", label: t("models.model"), cell: (row) => row.model },
          { id: "p", label: t("models.predicted"), right: true, cell: (row) => format.percent(row.p_mean, 1) },
          { id: "hit", label: t("models.came"), right: true, cell: (row) => format.percent(row.hit_rate, 1) },
          { id: "n", label: "n", right: true, cell: (row) => format.number(row.n) },
        ]}
        rows=${known.flatMap((each) => each.bins.map((bin) => ({ model: each.model, ...bin })))}
        label=${t("models.calibration")}
        empty=""
      />
    </details>
  <//>`;
}

function Deployments({ rows, t }) {
  const { format } = t;
  const columns = [
    {
      id: "from",
      label: t("models.from"),
      cell: (row) => format.dayMinute(row.effective_from_close_time),
      value: (row) => row.effective_from_close_time,
    },
    { id: "slot", label: t("models.slot"), cell: (row) => row.slot, value: (row) => row.slot },
    { id: "model", label: t("models.model"), wide: true, cell: (row) => row.model_id, value: (row) => row.model_id },
    { id: "by", label: t("col.by"), cell: (row) => row.by, value: (row) => row.by },
  ];
  return html`<${Panel} title=${t("models.deployments")}>
    <div class="tall">
      <${Table}
        columns=${columns}
        rows=${rows}
        keyOf=${(row) => row.id ?? `${row.slot} ${row.effective_from_close_time}`}
        label=${t("models.deployments")}
        empty=${t("models.no_deployments")}
        sort=${{ id: "from", down: true }}
      />
    </div>
  <//>`;
}

function Known({ data, t }) {
  const { format } = t;
  const columns = [
    { id: "model", label: t("models.model"), wide: true, cell: (row) => row.model_id, value: (row) => row.model_id },
    {
      id: "status",
      label: t("col.status"),
      cell: (row) => html`<span class="badge">${statusText(t, row.status)}</span>`,
      value: (row) => row.status,
    },
    {
      id: "created",
      label: t("models.created"),
      cell: (row) => format.dayMinute(row.created_at),
      value: (row) => row.created_at,
    },
    {
      id: "report",
      label: t("models.report"),
      cell: (row) => html`<${ReportLink} id=${row.model_id} data=${data} t=${t} />`,
    },
  ];
  return html`<${Panel} title=${t("models.models")}>
    <div class="tall">
      <${Table}
        columns=${columns}
        rows=${data.models ?? []}
        keyOf=${(row) => row.model_id}
        label=${t("models.models")}
        empty=${t("models.none")}
        sort=${{ id: "created", down: true }}
      />
    </div>
  <//>`;
}

/** The report is a page of its own, which the server sends sandboxed: no scripts, no origin. */
function ReportLink({ id, data, t }) {
  if (!data.reports?.includes(id)) return null;
  return html`<a href=${`/api/models/report?model_id=${encodeURIComponent(id)}`} target="_blank" rel="noopener noreferrer">
    ${t("models.report")}<span class="hidden"> ${id}</span> ↗
  </a>`;
}

function statusText(t, status) {
  return t.has(`models.status.${status}`) ? t(`models.status.${status}`) : status;
}
