// Every symbol's last minutes at a glance: decided how, late, repaired, missing.
import { Component, html, useEffect, useMemo, useRef, useState } from "../../vendor/htm-preact.js";
import { useApi } from "../api.js";
import { FLAGS, KINDS, cellColours, drawCell, kindOf } from "../parts/cell_signs.js";
import { HeatMap } from "../parts/heat_map.js";
import { Page } from "../parts/page.js";
import { useColours } from "../theme.js";

const SPANS = [60, 120, 360];
const MOST_IN_TABLE = 40;
const LARGE_UP_TO = 60;

export default function Minutes({ live, api, t, open }) {
  const [minutes, setMinutes] = useState(120);
  const [filter, setFilter] = useState("");
  const [only, setOnly] = useState("all");
  const [chosenSize, setSize] = useState(null);
  const [active, setActive] = useState(null);
  const every_s = Math.min(30, Math.max(5, 60 / (api.session.speed ?? 1)));
  const { data, error } = useApi(api, "minutes", { minutes }, every_s);
  const newest = useNewest(live, data);
  const symbols = useMemo(() => matching(newest, filter, only), [newest, filter, only]);
  const size = chosenSize ?? (newest && newest.symbols.length > LARGE_UP_TO ? "small" : "large");
  const explain = (symbol, time) => open(`#/explain/${symbol}/${time}`);
  const cell = active && newest && cellOf(newest, active);
  return html`<${Page}
    name="minutes"
    title=${t("minutes.title")}
    ready=${Boolean(newest)}
    error=${error}
    t=${t}
    aside=${html`<div class="toolbar">
      <${Chips} name=${t("minutes.span")} all=${SPANS} is=${minutes} set=${setMinutes} text=${(each) => t("time.h", { n: each / 60 })} id="span" />
      <${Chips} name=${t("minutes.size")} all=${["large", "small"]} is=${size} set=${setSize} text=${(each) => t(`minutes.${each}`)} id="size" />
      <${Chips} name=${t("overview.show")} all=${["all", "signals", "faults"]} is=${only} set=${setOnly} text=${(each) => t(`minutes.show_${each}`)} id="show" />
      <label class="hidden" for="minutes-filter">${t("overview.filter")}</label>
      <input
        id="minutes-filter"
        type="search"
        data-filter
        data-testid="minutes-filter"
        placeholder=${`${t("overview.filter")}  /`}
        value=${filter}
        spellcheck=${false}
        autocomplete="off"
        onInput=${(event) => setFilter(event.target.value)}
      />
    </div>`}
  >
    ${
      newest &&
      html`${
        newest.asked > newest.minutes &&
        html`<p class="note" role="status" data-testid="minutes-cut">
        ${t("minutes.cut", { shown: t.format.number(newest.minutes), asked: t.format.number(newest.asked) })}
      </p>`
      }
      <p class="told" id="heat-map-told" role="status" aria-live="polite" data-testid="minute-told">
        ${cell ? html`<${Told} active=${active} cell=${cell} t=${t} />` : html`<span class="muted">${t("minutes.help")}</span>`}
      </p>
      ${
        symbols.length
          ? html`<${HeatMap}
            times=${newest.times}
            symbols=${symbols}
            cells=${newest.cells}
            size=${size}
            active=${active}
            onActive=${(symbol, time) => setActive({ symbol, time })}
            onOpen=${explain}
            label=${t("minutes.map", { symbols: symbols.length, minutes: newest.times.length })}
            isTestable=${newest.symbols.length > MOST_IN_TABLE}
            t=${t}
          />`
          : html`<p class="muted empty">${t("overview.none")}</p>`
      }
      <${Legend} facts=${newest} t=${t} />
      ${newest.symbols.length <= MOST_IN_TABLE && html`<${HiddenTable} facts=${newest} t=${t} />`}`
    }
  <//>`;
}

/** The cell in words, with a way to its explanation. */
function Told({ active, cell, t }) {
  const kind = kindOf(cell);
  return html`<strong>${active.symbol}</strong> ${t.format.dayMinute(active.time)} <${Sign} kind=${kind} flags=${cell[1] ?? 0} />${" "}
    <strong>${kindText(t, kind)}</strong>${kind === "none" ? "" : `: ${t(`status_long.${cell[0]}`)}`}
    ${flagNames(cell[1]).map((name) => html` <span class="badge status-wait" key=${name}>${t(`minutes.flag.${name}`)}</span>`)}
    ${kind !== "none" && html` <a href=${`#/explain/${active.symbol}/${active.time}`} tabindex="-1">${t("page.explain")}</a>`}`;
}

function Legend({ facts, t }) {
  const isSideUnknown = useMemo(
    () => Object.values(facts.cells).some((row) => row.some((cell) => kindOf(cell) === "signal")),
    [facts],
  );
  const kinds = isSideUnknown ? ["signal", ...KINDS] : KINDS;
  return html`<div class="legend-box">
    <ul class="legend" aria-label=${t("minutes.legend")}>
      ${kinds.map(
        (kind) => html`<li key=${kind} title=${kind in LONG ? t(LONG[kind]) : t(`status_long.${kind}`)}>
        <${Sign} kind=${kind} flags=${0} /> ${kindText(t, kind)}
      </li>`,
      )}
      ${Object.entries(FLAGS).map(
        ([bit, name]) => html`<li key=${name}>
        <${Sign} kind="flat" flags=${Number(bit)} /> ${t(`minutes.flag.${name}`)}
      </li>`,
      )}
    </ul>
  </div>`;
}

const LONG = { signal: "status_long.ok", long: "status_long.ok", short: "status_long.ok", none: "minutes.none_long" };

/** A cell by itself. */
function Sign({ kind, flags }) {
  const canvas = useRef(null);
  const colours = useColours();
  useEffect(() => {
    const ratio = window.devicePixelRatio || 1;
    canvas.current.width = canvas.current.height = 16 * ratio;
    const context = canvas.current.getContext("2d");
    context.scale(ratio, ratio);
    drawCell(context, cellColours(), kind, flags, 0, 0, 16, 16);
  }, [kind, flags, colours]);
  return html`<canvas class="sign-cell" ref=${canvas} aria-hidden="true"></canvas>`;
}

function Chips({ name, all, is, set, text, id }) {
  return html`<div class="chips" role="group" aria-label=${name}>
    ${all.map(
      (each) => html`<button
      key=${each}
      type="button"
      class="chip"
      aria-pressed=${String(is === each)}
      data-testid=${`${id}-${each}`}
      onClick=${() => set(each)}
    >
      ${text(each)}
    </button>`,
    )}
  </div>`;
}

/** All of it for screen readers; large, so a row is only drawn again when it changed. */
class HiddenTable extends Component {
  shouldComponentUpdate(next) {
    return next.facts !== this.props.facts || next.t !== this.props.t;
  }

  render({ facts, t }) {
    return html`<div class="hidden" data-testid="minutes-table">
      <table>
        <caption>${t("minutes.title")}</caption>
        <thead>
          <tr>
            <th scope="col">${t("col.symbol")}</th>
            ${facts.times.map((time) => html`<th scope="col" key=${time}>${t.format.dayMinute(time)}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${facts.symbols.map(
            (symbol) => html`<${HiddenRow}
            key=${symbol}
            symbol=${symbol}
            cells=${facts.cells[symbol]}
            times=${facts.times}
            t=${t}
          />`,
          )}
        </tbody>
      </table>
    </div>`;
  }
}

class HiddenRow extends Component {
  shouldComponentUpdate(next) {
    const { cells, times, t } = this.props;
    return next.t !== t || next.times[0] !== times[0] || String(next.cells) !== String(cells);
  }

  render({ symbol, cells, times, t }) {
    return html`<tr>
      <th scope="row">${symbol}</th>
      ${times.map((time, at) => {
        const cell = cells?.[at];
        return html`<td key=${time} data-testid=${`minute-${symbol}-${time}`} data-status=${cell?.[0] ?? ""} data-flags=${cell?.[1] ?? 0}>
          ${[kindText(t, kindOf(cell)), ...flagNames(cell?.[1]).map((name) => t(`minutes.flag.${name}`))].join(", ")}
        </td>`;
      })}
    </tr>`;
  }
}

/** What was asked for, and what was decided since. */
function useNewest(live, data) {
  const [newest, setNewest] = useState(null);
  useEffect(() => {
    if (data) setNewest(data);
  }, [data]);
  useEffect(
    () =>
      live.on("decisions", (rows) =>
        setNewest((old) => {
          if (!old) return old;
          const minutes = old.times.length; // as many as were answered: of many symbols that can be fewer than asked for
          const last = Math.max(...rows.map((row) => row.close_time));
          const step = 60_000;
          const added = [];
          for (let time = (old.times.at(-1) ?? last) + step; time <= last && added.length < minutes; time += step)
            added.push(time);
          const times = [...old.times, ...added].slice(-minutes);
          const place = new Map(times.map((time, at) => [time, at]));
          const cells = { ...old.cells };
          if (added.length) {
            for (const symbol of old.symbols) {
              cells[symbol] = [...(cells[symbol] ?? []), ...added.map(() => [null, 0])].slice(-minutes);
            }
          }
          for (const row of rows) {
            const at = place.get(row.close_time);
            if (at === undefined || !cells[row.symbol]) continue;
            if (!added.length) cells[row.symbol] = [...cells[row.symbol]];
            cells[row.symbol][at] = [row.status, cells[row.symbol][at]?.[1] ?? 0, row.side];
          }
          return { ...old, times, cells };
        }),
      ),
    [live],
  );
  return newest;
}

function matching(facts, filter, only) {
  if (!facts) return [];
  const wanted = filter.trim().toUpperCase();
  return facts.symbols.filter((symbol) => {
    if (wanted && !symbol.includes(wanted)) return false;
    if (only === "all") return true;
    return (facts.cells[symbol] ?? []).some((cell) =>
      only === "signals"
        ? cell[0] === "ok"
        : cell[1] || !cell[0] || (cell[0] !== "ok" && cell[0] !== "flat" && cell[0] !== "cooldown"),
    );
  });
}

function cellOf(facts, { symbol, time }) {
  const at = facts.times.indexOf(time);
  return at < 0 ? null : (facts.cells[symbol]?.[at] ?? null);
}

function kindText(t, kind) {
  if (kind === "long" || kind === "short") return t(`minutes.${kind}`);
  if (kind === "signal") return t("status.ok");
  return kind === "none" ? t("minutes.none") : t(`status.${kind}`);
}

function flagNames(flags) {
  return Object.entries(FLAGS)
    .filter(([bit]) => (flags ?? 0) & Number(bit))
    .map(([, name]) => name);
}
