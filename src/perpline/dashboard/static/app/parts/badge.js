// Small signs. Shape and text say what colour says, for whoever does not see the colour.
import { html } from "../../vendor/htm-preact.js";

/**
 * OFF a hollow ring, PAPER a dashed sheet, LIVE a filled disc. `count` of symbols, where it is not all; `names` of them.
 * `brief` leaves the word to screen readers.
 */
export function ModeBadge({ mode, t, large = false, brief = false, testid = undefined, count = "", names = "" }) {
  const known = ["off", "paper", "live"].includes(mode) ? mode : "unknown";
  return html`<span
    class="mode mode-${known} ${large ? "large" : ""} ${brief ? "brief" : ""}"
    data-testid=${testid}
    data-mode=${mode ?? ""}
    title=${names ? `${t(`mode.${known}`)}: ${names}` : brief ? t(`mode.${known}`) : undefined}
  >
    <svg viewBox="0 0 16 16" aria-hidden="true">${SHAPES[known]}</svg>
    <span class=${brief ? "hidden" : ""}>${t(`mode.${known}`)}${count && ` ${count}`}</span>
    ${names && html`<span class="hidden">${names}</span>`}
  </span>`;
}

const SHAPES = {
  off: html`<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="2" />`,
  paper: html`<path
    d="M3.5 2h6L13 5.5V14H3.5z"
    fill="none"
    stroke="currentColor"
    stroke-width="1.6"
    stroke-dasharray="2.2 1.4"
  />`,
  live: html`<circle cx="8" cy="8" r="6" fill="currentColor" />`,
  unknown: html`<path d="M3 8h10" stroke="currentColor" stroke-width="2" />`,
};

/** An arrow and the word: ▲ long, ▼ short. `brief` leaves the word to screen readers. */
export function Side({ side, t, brief = false }) {
  if (side !== 1 && side !== -1) return null;
  const word = t(side > 0 ? "side.long" : "side.short");
  return html`<span class=${side > 0 ? "up" : "down"} title=${word}>
    <span aria-hidden="true">${side > 0 ? "▲" : "▼"}</span>
    <span class=${brief ? "hidden" : ""}>${brief ? word : ` ${word}`}</span>
  </span>`;
}

/** A decision: side and probability of a signal, else the reason of the abstention. */
export function DecisionBadge({ status, side, p, detail = "", t }) {
  const long = `${t(`status_long.${status}`)}${detail ? `: ${detail}` : ""}`;
  if (status === "ok") {
    return html`<span class="decision" title=${long}>
      <${Side} side=${side} t=${t} /> <span class="figure-text">${t.format.percent(p, 1)}</span>
    </span>`;
  }
  return html`<span class="badge status-${toneOf(status)}" title=${long}>${t(`status.${status}`)}</span>`;
}

/** What an abstention is for the eye: quiet (the model saw nothing), waiting, or something that should not be. */
export function toneOf(status) {
  if (status === "ok") return "signal";
  if (status === "flat" || status === "cooldown") return "quiet";
  if (status === "skipped_warmup" || status === "skipped_ood") return "wait";
  return "fault";
}

/** ✕ error, ! warning, i information: icon and word. */
export function Level({ level, t }) {
  const known = ["info", "warning", "error", "critical"].includes(level) ? level : "info";
  const sign = { info: "i", warning: "!", error: "✕", critical: "✕✕" }[known];
  return html`<span class="level level-${known}">
    <span aria-hidden="true">${sign}</span> ${t(`level.${known}`)}
  </span>`;
}

/** A number that is won or lost, with sign and colour. */
export function Money({ value, t, digits = 2, testid = undefined }) {
  const tone = value > 0 ? "up" : value < 0 ? "down" : "";
  return html`<span class="figure-text ${tone}" data-testid=${testid} data-value=${value}>
    ${t.format.signed(value, digits)}
  </span>`;
}
