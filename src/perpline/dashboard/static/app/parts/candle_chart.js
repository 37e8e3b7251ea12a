// Candles with what was decided and what became of it, by lightweight-charts.
import { html, useEffect, useRef } from "../../vendor/htm-preact.js";
import {
  CandlestickSeries,
  CrosshairMode,
  HistogramSeries,
  LineStyle,
  createChart,
  createSeriesMarkers,
} from "../../vendor/lightweight-charts.js";
import { useColours } from "../theme.js";
import { AXIS_WIDTH, tickText } from "./panes.js";

const MOST_HOLES = 5_000; // a longer hole is not drawn as one
const BAR_AT_FIRST = 8; // px
const ROOM_RIGHT = 6;

/**
 * `facts`: what /api/symbol answers; `title` of what (with another one the newest candles are shown again); `step` in ms;
 * `forming` the candle that is not closed yet, as those of `facts`, or null; `price` the price now, or null; `shown`
 * {abstentions, positions}; `shared` a SharedTime; `onHover(ms or null)` with the open time of the candle under the pointer.
 */
export function CandleChart({ facts, title, step, forming, price, shown, shared, onHover, label, t }) {
  const box = useRef(null);
  const picture = useRef(null);
  const colours = useColours();
  const newest = useRef(null);
  newest.current = onHover;
  useEffect(() => {
    picture.current = new Picture(box.current, colours, t, shared, (ms) => newest.current(ms));
    return () => picture.current.remove();
  }, [colours, t, shared]);
  useEffect(
    () => picture.current.show(facts, forming, step, shown, title),
    [facts, forming, title, step, shown, colours, t, shared],
  );
  useEffect(() => picture.current.tellPrice(price), [price, colours, t, shared]);
  return html`<div class="candles" ref=${box} role="group" aria-label=${label}></div>`;
}

class Picture {
  constructor(box, colours, t, shared, onHover) {
    this._box = box;
    this._colours = colours;
    this._shared = shared;
    this._step = 60_000;
    this._times = [];
    this._title = null;
    this._now = null;
    this._mode = (account) => t(`mode.${account}`);
    const { format } = t;
    this._format = format.price;
    this._chart = createChart(box, {
      autoSize: true,
      layout: {
        background: { color: "transparent" },
        textColor: colours.muted,
        fontFamily: "system-ui, sans-serif",
        fontSize: 11,
        panes: { separatorColor: colours.line },
      },
      grid: { vertLines: { color: colours.line }, horzLines: { color: colours.line } },
      rightPriceScale: { borderColor: colours.line, minimumWidth: AXIS_WIDTH },
      timeScale: {
        borderColor: colours.line,
        timeVisible: true,
        secondsVisible: false,
        rightOffset: ROOM_RIGHT,
        tickMarkFormatter: (s) => tickText(t, s * 1000),
      },
      crosshair: { mode: CrosshairMode.Normal },
      localization: {
        locale: t.language,
        priceFormatter: format.price,
        timeFormatter: (s) => format.dayMinute(s * 1000),
      },
    });
    this._series = this._chart.addSeries(CandlestickSeries, {
      upColor: colours.up,
      downColor: colours.down,
      wickUpColor: colours.up,
      wickDownColor: colours.down,
      borderVisible: false,
      priceLineColor: colours.muted,
    });
    this._volume = this._chart.addSeries(HistogramSeries, {
      priceScaleId: "volume",
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this._chart.priceScale("volume").applyOptions({ scaleMargins: { top: 0.86, bottom: 0 } });
    this._series.priceScale().applyOptions({ scaleMargins: { top: 0.1, bottom: 0.18 } });
    this._markers = createSeriesMarkers(this._series, []);
    this._boxes = new PositionBoxes(colours);
    this._series.attachPrimitive(this._boxes);
    this._lines = [];
    this._chart.timeScale().subscribeVisibleLogicalRangeChange(() => this._tellSpan());
    this._chart.subscribeCrosshairMove((at) => {
      const ms = at.time === undefined ? null : at.time * 1000;
      onHover(ms);
      shared.setCursor(ms === null ? null : ms + this._step / 2, this);
    });
    this._leave = shared.add(this);
  }

  remove() {
    this._leave();
    this._chart.remove();
  }

  show(facts, forming, step, shown, title) {
    const { candles, decisions, positions } = facts;
    this._step = step;
    const points = [];
    for (const [time, open, high, low, close, volume] of forming ? [...candles, forming] : candles) {
      const before = points.at(-1)?.ms ?? time - step;
      const holes = (time - before) / step - 1;
      if (holes > 0 && holes < MOST_HOLES) {
        for (let hole = 1; hole <= holes; hole += 1) points.push({ ms: before + hole * step });
      }
      points.push({ ms: time, open, high, low, close, volume });
    }
    this._times = points.map((point) => point.ms);
    const { up, down } = this._colours;
    const second = (ms) => ms / 1000;
    this._series.applyOptions({
      priceFormat: { type: "custom", minMove: leastMove(candles), formatter: this._format },
    });
    this._series.setData(
      points.map(({ ms, open, high, low, close }) =>
        open === undefined ? { time: second(ms) } : { time: second(ms), open, high, low, close },
      ),
    );
    this._volume.setData(
      points.map(({ ms, open, close, volume }) =>
        open === undefined
          ? { time: second(ms) }
          : { time: second(ms), value: volume, color: `${close >= open ? up : down}55` },
      ),
    );
    this._markers.setMarkers(markersOf(decisions, step, this._times, shown, this._colours));
    this._boxes.show(shown.positions ? positions : [], this._times, step);
    this._priceLines(shown.positions ? positions : []);
    if (title !== this._title && points.length) {
      const last = points.length - 1;
      const bars = Math.max(30, Math.floor((this._box.clientWidth - AXIS_WIDTH) / BAR_AT_FIRST));
      this._chart.timeScale().setVisibleLogicalRange({ from: last + ROOM_RIGHT - bars, to: last + ROOM_RIGHT });
      this._title = title;
    }
    this._tellSpan();
  }

  /** The price now as a line; with null the line stands at the last close. */
  tellPrice(price) {
    const isKnown = typeof price === "number";
    this._series.applyOptions({ priceLineVisible: !isKnown, lastValueVisible: !isKnown });
    if (!isKnown && this._now !== null) {
      this._series.removePriceLine(this._now);
      this._now = null;
    } else if (isKnown && this._now === null) {
      const color = this._colours.muted;
      this._now = this._series.createPriceLine({ price, color, lineWidth: 1, lineStyle: LineStyle.Dashed, axisLabelColor: color });
    } else if (isKnown) this._now.applyOptions({ price });
  }

  showSpan() {
    // the span is this chart's own
  }

  showCursor(ms) {
    const at = ms === null ? -1 : Math.floor(placeOf(this._times, this._step, ms));
    const time = this._times[at];
    const bar = time === undefined || ms >= time + this._step ? null : this._series.dataByIndex(at);
    if (bar?.close === undefined) this._chart.clearCrosshairPosition();
    else this._chart.setCrosshairPosition(bar.close, time / 1000, this._series);
  }

  _tellSpan() {
    const range = this._chart.timeScale().getVisibleLogicalRange();
    if (!range || !this._times.length) return;
    // A bar's middle is at its index, and it spans from its open time on.
    const ms = (index) => timeOf(this._times, this._step, index);
    this._shared.setSpan(ms(range.from), ms(range.to + 1));
  }

  /** Target, stop and entry of what is open, with their prices at the axis. */
  _priceLines(positions) {
    for (const line of this._lines) this._series.removePriceLine(line);
    this._lines = [];
    const { up, down, accent } = this._colours;
    for (const position of positions) {
      if (position.closed_at) continue;
      for (const [value, color] of [
        [position.entry_price, accent],
        [position.target, up],
        [position.stop, down],
      ]) {
        if (!Number(value)) continue;
        this._lines.push(
          this._series.createPriceLine({
            price: Number(value),
            color,
            lineVisible: false,
            axisLabelVisible: true,
            axisLabelColor: color,
            title: this._mode(position.account),
          }),
        );
      }
    }
  }
}

/** How the entry of a position of each account is drawn; what is won and lost with real money has its area filled. */
const DRAWN = { live: { dash: [], isFilled: true }, paper: { dash: [6, 4], isFilled: false } };

/** Draws each position from its entry to its exit: what it could win and lose, its prices, where it ended. */
export class PositionBoxes {
  constructor(colours) {
    this._colours = colours;
    this._positions = [];
    this._times = [];
    const draw = (target) => target.useMediaCoordinateSpace(({ context }) => this._draw(context));
    this._views = [{ zOrder: () => "bottom", renderer: () => ({ draw }) }];
  }

  attached({ chart, series, requestUpdate }) {
    this._chart = chart;
    this._series = series;
    this._again = requestUpdate;
  }

  paneViews() {
    return this._views;
  }

  /** `times`: the open times of the candles; what is open is drawn to the end of the last. */
  show(positions, times, step) {
    this._positions = positions;
    this._times = times;
    this._step = step;
    this._again?.();
  }

  _draw(context) {
    const scale = this._chart.timeScale();
    const zero = scale.logicalToCoordinate(0);
    const one = scale.logicalToCoordinate(1);
    if (zero === null || one === null) return;
    const { up, down, accent, text } = this._colours;
    const until = (this._times.at(-1) ?? 0) + this._step;
    const x = (ms) => zero + (placeOf(this._times, this._step, ms) - 0.5) * (one - zero);
    const y = (price) => (Number(price) ? this._series.priceToCoordinate(Number(price)) : null);
    for (const position of this._positions) {
      const from = x(position.opened_at ?? position.closed_at);
      const to = Math.max(from + 2, x(position.closed_at ?? Math.max(until, position.opened_at + this._step)));
      const { dash, isFilled } = DRAWN[position.account] ?? DRAWN.paper;
      const entry = y(position.entry_price);
      if (entry === null || to < 0) continue;
      const line = (price, colour, dash) => {
        const at = y(price);
        if (at === null) return;
        context.strokeStyle = colour;
        context.setLineDash(dash);
        context.beginPath();
        context.moveTo(from, at);
        context.lineTo(to, at);
        context.stroke();
      };
      const area = (price, colour) => {
        const at = y(price);
        if (at === null) return;
        context.fillStyle = `${colour}1f`;
        context.fillRect(from, Math.min(entry, at), to - from, Math.abs(at - entry));
      };
      context.lineWidth = 1.2;
      if (isFilled) area(position.target, up);
      if (isFilled) area(position.stop, down);
      line(position.target, up, [5, 3]);
      line(position.stop, down, [5, 3]);
      line(position.protective_stop, down, [1, 3]);
      line(position.entry_price, accent, dash);
      context.setLineDash([]);
      context.fillStyle = accent;
      context.beginPath();
      context.moveTo(from + 5, entry);
      context.lineTo(from - 3, entry - 5);
      context.lineTo(from - 3, entry + 5);
      context.closePath();
      if (isFilled) context.fill();
      else context.stroke();
      const exit = position.closed_at ? y(position.exit_price) : null;
      if (exit === null) continue;
      context.strokeStyle = text;
      context.setLineDash([2, 2]);
      context.beginPath();
      context.moveTo(from, entry);
      context.lineTo(to, exit);
      context.stroke();
      context.setLineDash([]);
      context.lineWidth = 2;
      context.beginPath();
      for (const turn of [1, -1]) {
        context.moveTo(to - 4, exit - 4 * turn);
        context.lineTo(to + 4, exit + 4 * turn);
      }
      context.stroke();
    }
  }
}

/** Where a time lies among candles that open at `times`: 2.5 is the middle of the third. In a hole it stands still. */
export function placeOf(times, step, ms) {
  const last = times.length - 1;
  if (last < 0 || ms < times[0]) return last < 0 ? 0 : (ms - times[0]) / step;
  let [low, high] = [0, last];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (times[middle] <= ms) low = middle;
    else high = middle - 1;
  }
  const inside = (ms - times[low]) / step;
  return low + (low < last ? Math.min(inside, 1) : inside);
}

/** The time at a place among them. */
export function timeOf(times, step, place) {
  const at = Math.min(times.length - 1, Math.max(0, Math.floor(place)));
  return times[at] + (place - at) * step;
}

function markersOf(decisions, step, times, shown, colours) {
  const markers = [];
  const signals = new Map(); // several of one side in a long candle are one marker with their number
  const [first, last] = [times[0] ?? 0, times.at(-1) ?? 0];
  for (const { close_time, status, side } of decisions) {
    const open = Math.floor((close_time - 1) / step) * step;
    if (open < first || open > last) continue;
    const time = open / 1000;
    if (status === "ok") {
      const key = `${time} ${side}`;
      signals.set(key, { time, side, count: (signals.get(key)?.count ?? 0) + 1 });
    } else if (shown.abstentions && status !== "flat") {
      markers.push({ time, position: "belowBar", shape: "circle", color: colours.warn, size: 0.5 });
    }
  }
  for (const { time, side, count } of signals.values()) {
    const text = count > 1 ? String(count) : "";
    markers.push(
      side > 0
        ? { time, position: "belowBar", shape: "arrowUp", color: colours.up, text }
        : { time, position: "aboveBar", shape: "arrowDown", color: colours.down, text },
    );
  }
  return markers.sort((one, other) => one.time - other.time);
}

/** A step of prices that is fine enough for an axis: what ten thousandths of the price is, as a power of ten. */
function leastMove(candles) {
  const price = candles.at(-1)?.[4] ?? 1;
  return 10 ** Math.floor(Math.log10(price / 50_000));
}
