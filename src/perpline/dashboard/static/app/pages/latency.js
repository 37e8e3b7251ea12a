// From the market's close to the stored and published decision: where the time goes.
import { html, useEffect, useMemo, useRef, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { useLive } from "../live.js";
import { Bar, StackedBar } from "../parts/bars.js";
import { LineChart } from "../parts/chart.js";
import { Figure, Page, Panel } from "../parts/page.js";
import { Sparkline } from "../parts/sparkline.js";
import { useKept } from "../parts/still.js";

/** In the order in which a close passes them; what else the worker tells follows. */
const STAGES = ["exchange", "collect", "features", "predict", "decide", "commit", "publish"];
const SPANS = [60, 120, 360];
const WEIGHT_POINTS = 600;

export default function Latency({ live, api, t }) {
  const [minutes, setMinutes] = useState(120);
  const asked = useApi(api, "latency", { minutes }, 5);
  const data = useKept(asked.data);
  useLive(live, ["overview"], 1000);
  const weights = useWeights(live);
  const { format } = t;
  const series = useMemo(() => columnsOf(data?.series ?? [], 2), [data]);
  const top = useRef(1); // the chart is made once and asks for this whenever it is drawn
  top.current = usualTop((data?.series ?? []).map((row) => row[2]));
  const stages = useMemo(() => stagesOf(data?.stages_ms), [data]);
  return html`<${Page}
    name="latency"
    title=${t("latency.title")}
    ready=${Boolean(asked.data)}
    error=${asked.error}
    t=${t}
    aside=${html`<div class="chips" role="group" aria-label=${t("minutes.span")}>
      ${SPANS.map(
        (each) => html`<button
        key=${each}
        type="button"
        class="chip"
        aria-pressed=${String(minutes === each)}
        data-testid=${`span-${each}`}
        onClick=${() => setMinutes(each)}
      >
        ${t("time.h", { n: each / 60 })}
      </button>`,
      )}
    </div>`}
  >
    ${
      data &&
      html`${
        data.asked > data.minutes &&
        html`<p class="note" role="status" data-testid="latency-cut">
        ${t("minutes.cut", { shown: format.number(data.minutes), asked: format.number(data.asked) })}
      </p>`
      }
      <div class="panels two">
      <${Summary} name="close_to_signal" facts=${data.close_to_signal_ms} t=${t} />
      <${Summary} name="market_close_to_signal" facts=${data.market_close_to_signal_ms} t=${t} />
      <${Panel} title=${t("latency.waterfall")} full data-testid="waterfall">
        ${stages.length ? html`<${Waterfall} stages=${stages} t=${t} />` : html`<p class="muted empty">${t("latency.no_stages")}</p>`}
      <//>
      <${Panel} title=${t("latency.over_time")} full>
        ${
          series[0].length
            ? html`<${LineChart}
              data=${series}
              series=${[
                { label: t("latency.median"), colour: "accent" },
                { label: t("latency.slowest"), colour: "warn" },
              ]}
              value=${format.ms}
              label=${t("latency.over_time")}
              height=${220}
              options=${{ scales: { y: { range: () => [0, top.current] } } }}
              t=${t}
            />`
            : html`<p class="muted empty">${t("latency.no_series")}</p>`
        }
      <//>
      <${Minutes} rows=${data.by_minute ?? []} t=${t} />
      <${Weight} weight=${live.header.weight} weights=${weights} t=${t} />
    </div>`
    }
  <//>`;
}

function Summary({ name, facts, t }) {
  const known = ["p50", "p90", "p95", "p99", "max"].filter((each) => Number.isFinite(facts?.[each]));
  return html`<${Panel} title=${t(`latency.${name}`)} data-testid=${name}>
    <p class="muted">${t(`latency.${name}_text`)}</p>
    ${known.length === 0 && html`<p class="muted empty">${t("latency.no_series")}</p>`}
    <dl class="figures large">
      ${known.map((each) => html`<${Figure} key=${each} name=${t(`latency.${each}`)} value=${t.format.ms(facts[each])} testid=${`${name}-${each}`} />`)}
    </dl>
  <//>`;
}

/** The stages beside one another, once as they usually are and once at their slowest percent. */
function Waterfall({ stages, t }) {
  const { format } = t;
  const sum = (of) => stages.reduce((total, stage) => total + (stage[of] ?? 0), 0);
  const max = Math.max(sum("p50"), sum("p99"));
  const bar = (of) => html`<div class="waterfall-row">
    <strong>${t(`latency.${of}`)}</strong>
    <${StackedBar}
      label=${t(`latency.${of}`)}
      max=${max}
      parts=${stages.map((stage, at) => ({ name: stage.name, label: stageText(t, stage.name), value: stage[of], text: format.ms(stage[of]), tone: (at % 7) + 1 }))}
    />
    <strong class="right">${format.ms(sum(of))}</strong>
  </div>`;
  return html`${bar("p50")} ${bar("p99")}
    <p class="muted"><small>${t("latency.sum_note")}</small></p>
    <div class="table-scroll" tabindex="0" role="region" aria-label=${t("latency.stage")}>
      <table class="stages">
        <caption class="hidden">${t("latency.waterfall")}</caption>
        <thead>
          <tr>
            <th scope="col">${t("latency.stage")}</th>
            <th scope="col" class="right">${t("latency.p50")}</th>
            <th scope="col" class="right">${t("latency.p99")}</th>
            <th scope="col">${t("latency.what")}</th>
          </tr>
        </thead>
        <tbody>
          ${stages.map(
            (stage, at) => html`<tr key=${stage.name} data-testid=${`stage-${stage.name}`}>
            <th scope="row"><i class="key tone-${(at % 7) + 1}" aria-hidden="true"></i> ${stageText(t, stage.name)}</th>
            <td class="right">${format.ms(stage.p50)}</td>
            <td class="right">${format.ms(stage.p99)}</td>
            <td class="wide muted">${t.has(`latency.stage_text.${stage.name}`) ? t(`latency.stage_text.${stage.name}`) : ""}</td>
          </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
}

/** Every minute's stages stacked, newest right. */
function Minutes({ rows, t }) {
  const { format } = t;
  const made = useMemo(() => {
    const names = [...new Set(rows.flatMap((row) => Object.keys(stagesIn(row))))].sort(byStage);
    const sums = rows.map((row) => names.reduce((sum, name) => sum + (stagesIn(row)[name] ?? 0), 0));
    return { names, sums, max: Math.max(0, ...sums), top: usualTop(sums) };
  }, [rows]);
  if (!made.max) return null;
  const shown = rows.slice(-180);
  const sums = made.sums.slice(-180);
  return html`<${Panel} title=${t("latency.by_minute")} full>
    <ul class="legend">
      ${made.names.map((name) => html`<li key=${name}><i class="key tone-${toneOf(name)}" aria-hidden="true"></i> ${stageText(t, name)}</li>`)}
      <li class="muted">${t("latency.highest", { ms: format.ms(made.max) })}</li>
    </ul>
    <div class="minute-bars" role="img" aria-label=${t("latency.by_minute")}>
      ${shown.map(
        (row, at) => html`<span
        key=${row.T}
        class="minute-bar"
        title=${`${format.minute(row.T)}: ${format.ms(sums[at])}`}
      >
        ${[...made.names].reverse().map(
          (name) => html`<i
          key=${name}
          class="tone-${toneOf(name)}"
          style=${{ height: `${(100 * (stagesIn(row)[name] ?? 0)) / made.top}%` }}
        ></i>`,
        )}
      </span>`,
      )}
    </div>
    <p class="ends muted"><small>${format.dayMinute(shown[0].T)}</small><small>${format.dayMinute(shown.at(-1).T)}</small></p>
  <//>`;
}

function Weight({ weight, weights, t }) {
  const { format } = t;
  if (!weight) return null;
  return html`<${Panel} title=${t("latency.weight")} full>
    <dl class="figures">
      <${Figure} name=${t("latency.weight_used")} value=${`${format.number(weight.used)} / ${format.number(weight.limit)}`} />
      <${Figure} name=${t("latency.weight_share")} value=${format.percent(weight.limit ? weight.used / weight.limit : null, 0)} />
    </dl>
    <${Bar} value=${weight.used} max=${weight.limit} tone=${weight.used > 0.8 * weight.limit ? "bad" : ""} />
    <p class="muted gap-above"><small>${t("latency.weight_text")}</small></p>
    ${weights.length >= 10 && html`<${Sparkline} values=${weights} width=${300} height=${40} label=${t("latency.weight")} />`}
  <//>`;
}

/** The weight used since this page was opened, once a second. */
function useWeights(live) {
  const [points, setPoints] = useState([]);
  useEffect(() => {
    const timer = setInterval(() => {
      const { weight } = live.header;
      if (weight && live.state === "live") setPoints((old) => [...old, weight.used].slice(-WEIGHT_POINTS));
    }, 1000);
    return () => clearInterval(timer);
  }, [live]);
  return points;
}

function stagesOf(facts) {
  return Object.entries(facts ?? {})
    .filter(([, each]) => each && Number.isFinite(each.p50))
    .map(([name, each]) => ({ name, p50: each.p50, p99: each.p99 }))
    .sort((a, b) => byStage(a.name, b.name));
}

/** The stages of a row of by_minute: all of it but its T and how many decisions were made. */
function stagesIn({ T, n, ...stages }) {
  return stages;
}

function byStage(one, other) {
  const place = (name) => (STAGES.includes(name) ? STAGES.indexOf(name) : STAGES.length);
  return place(one) - place(other) || one.localeCompare(other);
}

/** The top of a scale: one slow minute (a start) must not flatten the others, so it may stick out. */
function usualTop(values) {
  if (!values.length) return 1;
  const ascending = [...values].sort((a, b) => a - b);
  return Math.max(1, Math.min(ascending.at(-1), 3 * ascending[Math.floor(0.9 * (ascending.length - 1))]) * 1.05);
}

function toneOf(name) {
  return ((STAGES.includes(name) ? STAGES.indexOf(name) : STAGES.length) % 7) + 1;
}

function stageText(t, name) {
  return t.has(`latency.stages.${name}`) ? t(`latency.stages.${name}`) : name;
}

/** uPlot's data of rows [time, value 1, …]. */
function columnsOf(rows, count) {
  const columns = [rows.map((row) => row[0])];
  for (let at = 1; at <= count; at += 1) columns.push(rows.map((row) => row[at] ?? null));
  return columns;
}
