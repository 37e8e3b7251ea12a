// The signs of the heat map: a colour and a shape for everything a minute can be.

/** What a minute can be: the statuses of a decision with the side of a signal, and that there is no row. */
export const KINDS = [
  "long",
  "short",
  "flat",
  "cooldown",
  "skipped_warmup",
  "skipped_ood",
  "skipped_stale",
  "skipped_gap",
  "skipped_nan",
  "skipped_model",
  "skipped_missed",
  "none",
];

/** Marks in a corner or at an edge of a cell, by their bit. */
export const FLAGS = { 1: "late", 2: "repaired", 4: "synthetic", 8: "missing" };

/** The kind of a cell [status or null, flags, side]; "signal" where the side is not told. */
export function kindOf(cell) {
  if (!cell || !cell[0]) return "none";
  if (cell[0] !== "ok") return cell[0];
  return cell[2] > 0 ? "long" : cell[2] < 0 ? "short" : "signal";
}

/** The colours of cells, by kind, and `ink` for the shapes on them; from the style sheet, so call it after a change. */
export function cellColours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--cell-${name}`).trim();
  return Object.fromEntries([...KINDS, "signal", "ink", "ink-signal", "mark", "edge"].map((kind) => [kind, of(kind)]));
}

/** Draws one cell into `width` × `height` px at x, y. Shapes only where there is room for them. */
export function drawCell(context, colours, kind, flags, x, y, width, height) {
  context.fillStyle = colours[kind] ?? colours.none;
  context.fillRect(x, y, width, height);
  const size = Math.min(width, height);
  if (size >= 7) drawShape(context, colours, kind, x + width / 2, y + height / 2, size * 0.3);
  if (!flags) return;
  const edge = Math.max(1, Math.round(size / 6));
  context.fillStyle = colours.mark;
  if (flags & 1) {
    const corner = Math.max(2, size * 0.38);
    context.beginPath();
    context.moveTo(x + width, y);
    context.lineTo(x + width, y + corner);
    context.lineTo(x + width - corner, y);
    context.fill();
  }
  if (flags & 2) context.fillRect(x, y + height - edge, width, edge);
  if (flags & 4) context.fillRect(x, y, edge, height);
  if (flags & 8) {
    context.strokeStyle = colours.mark;
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
  }
}

function drawShape(context, colours, kind, x, y, r) {
  const isSignal = kind === "long" || kind === "short";
  const ink = isSignal || kind === "signal" ? colours["ink-signal"] : colours.ink;
  context.fillStyle = ink;
  context.strokeStyle = ink;
  context.lineWidth = Math.max(1, r * 0.45);
  context.beginPath();
  const lines = (...points) => {
    for (const [x1, y1, x2, y2] of points) {
      context.moveTo(x + x1 * r, y + y1 * r);
      context.lineTo(x + x2 * r, y + y2 * r);
    }
    context.stroke();
  };
  const path = (...points) => {
    points.forEach(([px, py], at) => context[at ? "lineTo" : "moveTo"](x + px * r, y + py * r));
    context.closePath();
  };
  if (isSignal) {
    const up = kind === "long" ? -1 : 1;
    path([0, up * 1.1], [1.1, -up * 0.9], [-1.1, -up * 0.9]);
    context.fill();
  } else if (kind === "signal") {
    context.arc(x, y, r, 0, Math.PI * 2);
    context.fill();
  } else if (kind === "cooldown") lines([-0.9, -0.5, 0.9, -0.5], [-0.9, 0.5, 0.9, 0.5]);
  else if (kind === "skipped_warmup") {
    context.arc(x, y, r * 0.9, 0, Math.PI * 2);
    context.stroke();
  } else if (kind === "skipped_ood") {
    path([0, -1.1], [1.1, 0], [0, 1.1], [-1.1, 0]);
    context.stroke();
  } else if (kind === "skipped_stale") lines([0, -1, 0, 0.25], [0, 0.7, 0, 1.1]);
  else if (kind === "skipped_gap") lines([-1, -1, 1, 1], [-1, 1, 1, -1]);
  else if (kind === "skipped_nan") lines([-1, 0, 1, 0], [0, -1, 0, 1]);
  else if (kind === "skipped_model") {
    path([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]);
    context.stroke();
  } else if (kind === "skipped_missed") lines([-1, 1, 1, -1]);
  else if (kind === "none") {
    context.strokeStyle = colours.edge;
    lines([-0.9, 0, 0.9, 0]);
  }
}
