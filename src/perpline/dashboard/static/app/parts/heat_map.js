// Symbols × minutes as cells on a canvas; only those in view are drawn.
import { html, useCallback, useEffect, useLayoutEffect, useRef, useState } from "../../vendor/htm-preact.js";
import { useColours } from "../theme.js";
import { cellColours, drawCell, kindOf } from "./cell_signs.js";
import { dayText, tickText } from "./panes.js";

const HEAD = 22;
const SIZES = { large: { row: 20, least: 9 }, small: { row: 8, least: 4 } };
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * `times` ascending, `symbols`, `cells`: symbol → one [status, flags, side] a time. `size`: large or small. `active`:
 * {symbol, time} or null, `onActive(symbol, time)` when the pointer or an arrow key comes to a cell, or a finger touches
 * it, `onOpen(symbol, time)` when it is clicked, touched again or Enter is pressed. `isTestable` puts a data-testid on the active cell.
 */
export function HeatMap({ times, symbols, cells, size, active, onActive, onOpen, label, isTestable, t }) {
  const box = useRef(null);
  const canvas = useRef(null);
  const touched = useRef(null);
  const colours = useColours();
  const [view, setView] = useState({ width: 0, height: 0 });
  const side = view.width < 620 ? 92 : 124;
  const { row, least } = SIZES[size];
  const column = Math.max(least, (view.width - side - 2) / Math.max(1, times.length));
  const width = Math.floor(side + column * times.length);
  const height = HEAD + row * symbols.length;
  const at = active ? { row: symbols.indexOf(active.symbol), column: times.indexOf(active.time) } : null;
  const isShown = at && at.row >= 0 && at.column >= 0;

  useLayoutEffect(() => {
    const look = () => setView({ width: box.current.clientWidth, height: box.current.clientHeight });
    const observer = new ResizeObserver(look);
    observer.observe(box.current);
    look();
    return () => observer.disconnect();
  }, []);
  // The newest minutes are at the right end.
  useEffect(() => {
    box.current.scrollLeft = width;
  }, [width]);

  const draw = useCallback(() => {
    const { scrollLeft, scrollTop } = box.current;
    const ratio = window.devicePixelRatio || 1;
    const paper = canvas.current;
    if (paper.width !== Math.round(view.width * ratio) || paper.height !== Math.round(view.height * ratio)) {
      paper.width = Math.round(view.width * ratio);
      paper.height = Math.round(view.height * ratio);
    }
    const context = paper.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    const inks = cellColours();
    const space = size === "large" ? 1 : 0;
    const firstRow = Math.floor(scrollTop / row);
    const lastRow = Math.min(symbols.length, Math.ceil((scrollTop + view.height - HEAD) / row) + 1);
    const firstColumn = Math.floor(scrollLeft / column);
    const lastColumn = Math.min(times.length, Math.ceil((scrollLeft + view.width - side) / column) + 1);
    const x = (n) => Math.round(side + n * column - scrollLeft);
    const y = (n) => HEAD + n * row - scrollTop;
    for (let r = firstRow; r < lastRow; r += 1) {
      const mine = cells[symbols[r]] ?? [];
      for (let c = firstColumn; c < lastColumn; c += 1) {
        const cell = mine[c];
        drawCell(context, inks, kindOf(cell), cell?.[1] ?? 0, x(c), y(r), x(c + 1) - x(c) - space, row - space);
      }
    }
    // What stays in view lies on top: names at the left, times above.
    context.fillStyle = colours.surface;
    context.fillRect(0, HEAD, side - 2, view.height);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "left";
    const step = Math.max(1, Math.ceil(13 / row));
    for (let r = firstRow; r < lastRow; r += 1) {
      if (r % step) continue;
      context.fillStyle = at && r === at.row ? colours.accent : colours.text;
      context.fillText(fitting(context, symbols[r], side - 10), 2, y(r) + row / 2);
    }
    context.fillStyle = colours.surface;
    context.fillRect(0, 0, view.width, HEAD);
    context.textAlign = "center";
    const every = [5, 10, 15, 30, 60].find((minutes) => minutes * column >= 58) ?? 60;
    for (let c = Math.max(0, firstColumn - every); c < lastColumn; c += 1) {
      if ((times[c] / 60_000) % every) continue;
      const middle = Math.round(x(c) + column / 2);
      if (middle < side + 14 || middle > view.width - 14) continue;
      context.fillStyle = colours.muted;
      context.fillText(tickText(t, times[c]), middle, HEAD / 2 - 1);
      context.fillRect(middle, HEAD - 4, 1, 3);
    }
    // The day of the first minute in view; where another begins its midnight says so.
    context.textAlign = "left";
    context.fillStyle = colours.muted;
    if (times.length) context.fillText(dayText(t, times[Math.min(firstColumn, times.length - 1)]), 2, HEAD / 2 - 1);
  }, [times, symbols, cells, size, colours, view, column, row, side, t, at?.row]);
  useLayoutEffect(draw, [draw]);

  const cellAt = (event) => {
    const area = box.current.getBoundingClientRect();
    const [px, py] = [event.clientX - area.left, event.clientY - area.top];
    if (px < side || py < HEAD) return null;
    const symbol = symbols[Math.floor((py - HEAD + box.current.scrollTop) / row)];
    const time = times[Math.floor((px - side + box.current.scrollLeft) / column)];
    return symbol !== undefined && time !== undefined ? { symbol, time } : null;
  };
  const move = (event) => {
    const cell = cellAt(event);
    if (cell && (cell.symbol !== active?.symbol || cell.time !== active?.time)) onActive(cell.symbol, cell.time);
  };
  // A finger cannot point without touching: the first touch of a cell says what it is, the second opens it.
  const touch = (event) => {
    touched.current = event.pointerType === "touch" ? active : null;
  };
  const click = (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    const before = touched.current;
    const isSame = before?.symbol === cell.symbol && before.time === cell.time;
    if (event.pointerType === "touch" && !isSame) onActive(cell.symbol, cell.time);
    else onOpen(cell.symbol, cell.time);
  };
  const press = (event) => {
    if (event.key === "Enter" && isShown) {
      onOpen(active.symbol, active.time);
      event.preventDefault();
      return;
    }
    let { row: r, column: c } = isShown ? at : { row: 0, column: times.length - 1 };
    if (event.key in ARROWS) {
      if (isShown) [r, c] = [r + ARROWS[event.key][0], c + ARROWS[event.key][1]];
    } else if (event.key === "Home") c = 0;
    else if (event.key === "End") c = times.length - 1;
    else if (event.key === "PageUp") r -= 10;
    else if (event.key === "PageDown") r += 10;
    else return;
    event.preventDefault();
    r = Math.min(symbols.length - 1, Math.max(0, r));
    c = Math.min(times.length - 1, Math.max(0, c));
    onActive(symbols[r], times[c]);
    const { scrollTop, scrollLeft, clientHeight, clientWidth } = box.current;
    if (r * row < scrollTop) box.current.scrollTop = r * row;
    else if ((r + 1) * row + HEAD > scrollTop + clientHeight)
      box.current.scrollTop = (r + 1) * row + HEAD - clientHeight;
    if (c * column < scrollLeft) box.current.scrollLeft = c * column;
    else if ((c + 1) * column + side > scrollLeft + clientWidth) {
      box.current.scrollLeft = (c + 1) * column + side - clientWidth;
    }
  };
  const place = isShown && {
    left: `${side + at.column * column - 1}px`,
    top: `${HEAD + at.row * row - 1}px`,
    width: `${column + 1}px`,
    height: `${row + 1}px`,
  };
  return html`<div
    class="heat-map"
    ref=${box}
    tabindex="0"
    role="application"
    aria-label=${label}
    aria-describedby="heat-map-told"
    data-testid="heat-map"
    onScroll=${draw}
    onMouseMove=${move}
    onPointerDown=${touch}
    onClick=${click}
    onKeyDown=${press}
    onFocus=${() => active === null && onActive(symbols[0], times.at(-1))}
  >
    <canvas
      ref=${canvas}
      aria-hidden="true"
      style=${{ width: `${view.width}px`, height: `${view.height}px`, marginBottom: `${-view.height}px` }}
    ></canvas>
    <div class="heat-map-all" style=${{ width: `${width}px`, height: `${height}px` }}>
      ${
        isShown &&
        html`<span
        class="heat-map-cell"
        style=${place}
        data-testid=${isTestable ? `minute-${active.symbol}-${active.time}` : undefined}
      ></span>`
      }
    </div>
  </div>`;
}

function fitting(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length -= 1;
  return `${text.slice(0, length)}…`;
}
