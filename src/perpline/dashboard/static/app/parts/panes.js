// Charts that stand under one another and share the span of time in view and the cursor.
import { html, useEffect, useRef } from "../../vendor/htm-preact.js";
import uPlot from "../../vendor/uPlot.js";
import { useColours } from "../theme.js";

export const AXIS_WIDTH = 74;
const DAY_MS = 86_400_000;

/** What the charts of a page share. A pane is anything with `showSpan(from, to)` and `showCursor(ms or null)`. */
export class SharedTime {
  span = null;

  constructor() {
    this._panes = new Set();
    this._busy = false;
  }

  add(pane) {
    this._panes.add(pane);
    return () => this._panes.delete(pane);
  }

  /** `from` and `to` in ms. */
  setSpan(from, to) {
    this.span = [from, to];
    for (const pane of this._panes) pane.showSpan(from, to);
  }

  /** Told by the pane under the pointer; the others answer by moving theirs, which tells nobody. */
  setCursor(ms, origin) {
    if (this._busy) return;
    this._busy = true;
    for (const pane of this._panes) if (pane !== origin) pane.showCursor(ms);
    this._busy = false;
  }
}

/**
 * A low chart of lines. `data`, `series` and `value` as LineChart's; `shared` a SharedTime; `isLast` draws the times.
 * The values under the cursor, or the newest, stand in its heading.
 */
export function Pane({ title, data, series, value, shared, t, height = 84, isLast = false }) {
  const box = useRef(null);
  const values = useRef(null);
  const chart = useRef(null);
  const colours = useColours();
  const newest = useRef(null);
  newest.current = { data, series, value };
  const isEmpty = data[0].length === 0;

  useEffect(() => {
    if (isEmpty) return undefined;
    const element = box.current; // the observer may still call when it is no longer in the page
    const tell = (at) => {
      const { data: now, series: lines, value: text } = newest.current;
      lines.forEach((line, n) => {
        const place = at ?? lastKnown(now[n + 1]);
        const is = now[n + 1][place];
        values.current.children[n].lastChild.textContent = is === null || is === undefined ? t.format.none : text(is);
      });
    };
    const axis = {
      stroke: colours.muted,
      grid: { stroke: colours.line, width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const pane = {
      showSpan: (min, max) => chart.current.setScale("x", { min, max }),
      showCursor(ms) {
        const left = ms === null ? -10 : chart.current.valToPos(ms, "x");
        chart.current.setCursor({ left, top: ms === null ? -10 : 1 });
      },
    };
    chart.current = new uPlot(
      {
        width: Math.max(140, element.clientWidth),
        height,
        ms: 1,
        tzDate: (ms) => uPlot.tzDate(new Date(ms), "Etc/UTC"),
        padding: [6, 0, isLast ? 0 : 4, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        scales: { x: { range: (_, from, to) => shared.span ?? [from, to] } },
        series: [
          {},
          ...series.map((line, n) => ({
            stroke: colours[line.colour] ?? colours.series[n % 5],
            width: 1.4,
            dash: line.dash,
            spanGaps: true,
            points: { show: Boolean(line.points), size: 5 },
            ...(line.points === "only" ? { paths: () => null } : {}),
          })),
        ],
        axes: [
          {
            ...axis,
            size: isLast ? 26 : 0,
            values: (_, ticks) => ticks.map((ms) => (isLast ? tickText(t, ms) : "")),
          },
          {
            ...axis,
            side: 1,
            size: AXIS_WIDTH,
            space: 26,
            values: (_, ticks) => ticks.map((each) => newest.current.value(each)),
          },
        ],
        hooks: {
          setCursor: [
            (plot) => {
              const isIn = plot.cursor.left >= 0 && plot.cursor.idx !== null;
              tell(isIn ? plot.cursor.idx : null);
              shared.setCursor(isIn ? plot.posToVal(plot.cursor.left, "x") : null, pane);
            },
          ],
          setData: [() => tell(null)],
        },
      },
      newest.current.data,
      element,
    );
    tell(null);
    const end = shared.add(pane);
    const observer = new ResizeObserver(() => {
      chart.current.setSize({ width: Math.max(140, element.clientWidth), height });
    });
    observer.observe(element);
    return () => {
      end();
      observer.disconnect();
      chart.current.destroy();
      chart.current = null;
    };
  }, [colours, t, height, isEmpty, isLast, shared, series.map((line) => line.label).join("|")]);
  useEffect(() => chart.current?.setData(data), [data]);

  return html`<section class="pane" aria-label=${title}>
    <h3>
      ${title}
      <span class="pane-values" ref=${values}>
        ${
          !isEmpty &&
          series.map(
            (line, n) => html`<span key=${line.label}>
          <i class="key key-${line.key ?? n + 1}" aria-hidden="true"></i> ${series.length > 1 ? line.label : ""}
          <b></b>
        </span>`,
          )
        }
      </span>
    </h3>
    ${
      isEmpty
        ? html`<p class="muted empty">${t("chart_none.none")}</p>`
        : html`<div class="chart" ref=${box} role="img" aria-label=${title}></div>`
    }
  </section>`;
}

/** uPlot's data of several lists of [time, value]: one ascending list of all times, and each list's values or null. */
export function aligned(lists) {
  const times = [...new Set(lists.flatMap((list) => list.map((row) => row[0])))].sort((a, b) => a - b);
  const place = new Map(times.map((time, at) => [time, at]));
  return [
    times,
    ...lists.map((list) => {
      const values = new Array(times.length).fill(null);
      for (const [time, value] of list) values[place.get(time)] = value;
      return values;
    }),
  ];
}

/** The time at an axis: the day at its beginning. */
export function tickText(t, ms) {
  return ms % DAY_MS ? t.format.minute(ms) : dayText(t, ms);
}

/** Nov 23 */
export function dayText(t, ms) {
  return new Intl.DateTimeFormat(t.language, { timeZone: "UTC", month: "short", day: "numeric" }).format(ms);
}

function lastKnown(values) {
  let at = values.length - 1;
  while (at > 0 && (values[at] === null || values[at] === undefined)) at -= 1;
  return at;
}
