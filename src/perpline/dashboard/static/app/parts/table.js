// Tables: one that draws all of its rows, and one that draws those in view.
import { html, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../../vendor/htm-preact.js";

const STEP = 8; // the rows drawn change by so many, and so many or more are drawn above and below the view

/**
 * A table of a few hundred rows at most. `columns`: [{id, label, cell(row), value(row) to sort by, right, hint, wide,
 * sticky}]; a column without `value` cannot be sorted by, a sticky one stays in view when the table is scrolled sideways. `rows`: objects; `keyOf(row)`; `label` its name for screen readers;
 * `sort` the first order {id, down}; `onRow(row)` makes rows open something. Sorted by header buttons.
 */
export function Table({ columns, rows, keyOf, label, empty, sort: first = null, onRow = null, rowProps = null }) {
  const [sort, setSort] = useState(first);
  const shown = useMemo(() => sorted(rows, columns, sort), [rows, columns, sort]);
  if (!rows.length) return html`<p class="muted empty">${empty}</p>`;
  return html`<div class="table-scroll" tabindex="0" role="region" aria-label=${label}>
    <table>
      <caption class="hidden">${label}</caption>
      <thead>
        <tr>
          ${columns.map((each) => html`<${Head} key=${each.id} column=${each} sort=${sort} onSort=${setSort} />`)}
        </tr>
      </thead>
      <tbody>
        ${shown.map((row, at) => html`<tr
          key=${keyOf ? keyOf(row) : at}
          ...${onRow ? opens(() => onRow(row)) : {}}
          ...${rowProps ? rowProps(row) : {}}
        >
          ${columns.map((column) => html`<td
            key=${column.id}
            class="${column.right ? "right" : ""} ${column.wide ? "wide" : ""} ${column.sticky ? "sticky" : ""}"
          >
            ${column.cell(row)}
          </td>`)}
        </tr>`)}
      </tbody>
    </table>
  </div>`;
}

/**
 * A table of any length whose rows all have the height `rowHeight`: only those in view are drawn. `items`: what `Row`
 * gets as `item`, in the order to show, with `keyOf(item)` (a string). Columns have a `width` (px; shares of what is
 * there where that is more).
 *
 * `Row` draws a <div ...${props.row}> (props.row: role, place, tabindex) of one element a column with role="cell".
 * These are no <tr>: the browser would lay out the whole table anew for every row that comes into view, and for every
 * price. Arrow keys, Home, End and Page keys move between rows, one of which is reached by Tab.
 */
export function WindowTable({ columns, items, keyOf, Row, rowProps, rowHeight, label, sort, onSort }) {
  const box = useRef(null);
  const [view, setView] = useState({ from: 0, to: 40 });
  const [active, setActive] = useState(null);
  const wantsFocus = useRef(false);
  const newest = useRef(items);
  newest.current = items;

  const look = useCallback(() => {
    const { scrollTop, clientHeight } = box.current;
    const from = Math.max(0, stepDown(scrollTop / rowHeight) - STEP);
    const to = stepDown((scrollTop + clientHeight) / rowHeight) + 2 * STEP;
    setView((old) => (old.from === from && old.to === to ? old : { from, to }));
  }, [rowHeight]);
  useEffect(() => {
    const observer = new ResizeObserver(look);
    observer.observe(box.current);
    look();
    return () => observer.disconnect();
  }, [look]);
  useLayoutEffect(() => {
    if (!wantsFocus.current) return;
    wantsFocus.current = false;
    box.current.querySelector("[data-active]")?.focus({ preventScroll: true });
  });

  const move = useCallback(
    (event) => {
      if (event.target.dataset.key === undefined) return;
      const here = newest.current.findIndex((item) => keyOf(item) === event.target.dataset.key);
      const page = Math.max(1, Math.floor(box.current.clientHeight / rowHeight) - 2);
      const last = newest.current.length - 1;
      const there = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page };
      Object.assign(there, { Home: 0, End: last });
      if (!(event.key in there) || here < 0) return;
      event.preventDefault();
      const to = Math.min(last, Math.max(0, there[event.key]));
      const head = box.current.querySelector(".grid-head").offsetHeight;
      const top = to * rowHeight;
      if (top < box.current.scrollTop) box.current.scrollTop = top;
      const bottom = top + rowHeight + head - box.current.clientHeight;
      if (bottom > box.current.scrollTop) box.current.scrollTop = bottom;
      wantsFocus.current = true;
      setActive(keyOf(newest.current[to]));
      look();
    },
    [keyOf, rowHeight, look],
  );
  const places = useMemo(() => ({ gridTemplateColumns: columns.map((each) => `${each.width}fr`).join(" ") }), [columns]);
  const width = columns.reduce((sum, each) => sum + each.width, 0);

  const to = Math.min(items.length, view.to);
  const from = Math.min(view.from, to);
  const shown = items.slice(from, to);
  const reached = shown.some((item) => keyOf(item) === active) ? active : shown.length ? keyOf(shown[0]) : null;
  return html`<div class="table-scroll window" ref=${box} onScroll=${look} role="region" aria-label=${label} tabindex="0">
    <div
      class="grid"
      role="table"
      aria-label=${label}
      aria-rowcount=${items.length + 1}
      aria-colcount=${columns.length}
      style=${{ minWidth: `${width}px` }}
      onKeyDown=${move}
    >
      <div role="rowgroup" class="grid-head">
        <div role="row" aria-rowindex="1" class="grid-row" style=${places}>
          ${columns.map((each) => html`<${Head} key=${each.id} column=${each} sort=${sort} onSort=${onSort} tag="div" />`)}
        </div>
      </div>
      <div role="rowgroup" class="grid-body" style=${{ height: `${items.length * rowHeight}px` }}>
        ${shown.map((item, at) => {
          const key = keyOf(item);
          return html`<${Row}
            key=${key}
            item=${item}
            isActive=${key === reached}
            index=${from + at}
            top=${(from + at) * rowHeight}
            places=${places}
            onFocus=${setActive}
            ...${rowProps}
          />`;
        })}
      </div>
    </div>
  </div>`;
}

function stepDown(rows) {
  return Math.floor(rows / STEP) * STEP;
}

/** A header cell; a button where the column can be sorted by. */
export function Head({ column, sort, onSort, tag = "th" }) {
  const is = sort?.id === column.id;
  const order = is ? (sort.down ? "descending" : "ascending") : undefined;
  const kind = `${column.right ? "right" : ""} ${column.sticky ? "sticky" : ""} ${column.className ?? ""}`;
  const says = tag === "th" ? { scope: "col" } : { role: "columnheader" };
  if (!column.value) return html`<${tag} ...${says} class=${kind} title=${column.hint}>${column.label}<//>`;
  const turn = () => onSort({ id: column.id, down: is ? !sort.down : Boolean(column.downFirst) });
  return html`<${tag} ...${says} class=${kind} aria-sort=${order}>
    <button type="button" class="sort" onClick=${turn} title=${column.hint}>
      ${column.label}<span class="sort-sign" aria-hidden="true">${is ? (sort.down ? "▾" : "▴") : ""}</span>
    </button>
  <//>`;
}

/** `rows` in the order of `sort`: what has no value comes last either way, equals stay as they were. */
export function sorted(rows, columns, sort) {
  const value = columns.find((each) => each.id === sort?.id)?.value;
  if (!value) return rows;
  const turn = sort.down ? -1 : 1;
  const isNone = (each) => each === null || each === undefined || Number.isNaN(each);
  return rows
    .map((row) => [value(row), row])
    .sort(([one], [other]) => {
      if (isNone(one) || isNone(other)) return isNone(one) - isNone(other);
      if (typeof one === "string") return turn * one.localeCompare(other);
      return turn * (one - other);
    })
    .map(([, row]) => row);
}

function opens(open) {
  return {
    tabIndex: 0,
    class: "opens",
    onClick: (event) => !event.target.closest("a, button") && open(),
    onKeyDown: (event) => event.key === "Enter" && event.target === event.currentTarget && open(),
  };
}
