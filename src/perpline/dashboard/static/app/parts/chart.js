// Lines over time, by uPlot.
import { html, useEffect, useRef } from "../../vendor/htm-preact.js";
import uPlot from "../../vendor/uPlot.js";
import { useColours } from "../theme.js";

/**
 * Lines over time. `data`: [times in ms, values of line 1, …], ascending, null where there is none. `series`:
 * [{label, colour (a name of useColours, or #rrggbb), value(v) → text, fill, dash, points, spline}]. `value(v)` names
 * the axis' numbers. `label` says in words what is drawn, for who cannot see it. `options` go to uPlot as they are.
 */
export function LineChart({ data, series, label, t, height = 220, value = null, options = {} }) {
  const box = useRef(null);
  const chart = useRef(null);
  const colours = useColours();
  useEffect(() => {
    const text = (v) => (v === null || v === undefined ? t.format.none : value ? value(v) : t.format.number(v, 2));
    const axis = {
      stroke: colours.muted,
      grid: { stroke: colours.line, width: 1 },
      ticks: { stroke: colours.line, width: 1, size: 4 },
      font: "11px system-ui, sans-serif",
    };
    const made = new uPlot(
      {
        width: Math.max(120, box.current.clientWidth),
        height,
        ms: 1,
        tzDate: (ms) => uPlot.tzDate(new Date(ms), "Etc/UTC"),
        legend: { live: true },
        cursor: { points: { size: 6 } },
        series: [
          { label: t("chart.time"), value: (_, ms) => (ms === null ? t.format.none : t.format.dayMinute(ms)) },
          ...series.map((each, at) => {
            const colour = colours[each.colour] ?? each.colour ?? colours.series[at % 5];
            return {
              label: each.label,
              stroke: colour,
              width: 1.5,
              dash: each.dash,
              fill: each.fill ? `${colour}22` : undefined,
              points: { show: Boolean(each.points), size: 4 },
              spanGaps: Boolean(each.spanGaps),
              value: (_, v) => (v === null || v === undefined ? t.format.none : (each.value ?? text)(v)),
            };
          }),
        ],
        axes: [
          { ...axis, values: (_, ticks) => axisTimes(t, ticks) },
          { ...axis, size: 64, values: (_, ticks) => ticks.map(text) },
        ],
        ...options,
      },
      data,
      box.current,
    );
    chart.current = made;
    const observer = new ResizeObserver(() => {
      made.setSize({ width: Math.max(120, box.current.clientWidth), height });
    });
    observer.observe(box.current);
    return () => {
      observer.disconnect();
      made.destroy();
      chart.current = null;
    };
  }, [colours, t, height, series.map((each) => each.label).join("|")]);
  useEffect(() => chart.current?.setData(data), [data]);
  return html`<div class="chart" ref=${box} role="img" aria-label=${label}></div>`;
}

function axisTimes(t, ticks) {
  return ticks.map((ms, at) => {
    const isNewDay = at === 0 || new Date(ms).getUTCDate() !== new Date(ticks[at - 1]).getUTCDate();
    return isNewDay && ticks.length > 1 && ticks.at(-1) - ticks[0] > 43_200_000
      ? t.format.dayMinute(ms).replace(/,?\s*00:00$/, "")
      : t.format.minute(ms);
  });
}
