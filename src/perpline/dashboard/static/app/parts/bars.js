// Horizontal bars with their numbers beside them.
import { html } from "../../vendor/htm-preact.js";

/** A bar of `value` in `max`. `mark`: a tick at that value (a threshold), told by `markText`. */
export function Bar({ value, max, mark = null, markText = undefined, tone = "" }) {
  const share = (part) => `${Math.min(100, Math.max(0, (100 * part) / (max || 1)))}%`;
  return html`<span class="bar-track ${tone}" aria-hidden="true">
    <span class="bar-fill" style=${{ width: share(value ?? 0) }}></span>
    ${mark !== null && mark !== undefined && html`<span class="bar-mark" title=${markText} style=${{ left: share(mark) }}></span>`}
  </span>`;
}

/**
 * Parts of a whole beside one another: `parts` [{name, label, value, text, tone}]; the whole bar is `max` long. The tone
 * 1, 2, … is the n-th colour. What is shorter than a number is wide shows it in the list below only.
 */
export function StackedBar({ parts, max, label }) {
  const shown = parts.filter((part) => part.value > 0);
  return html`<div class="stacked" role="img" aria-label=${`${label}: ${parts.map((part) => `${part.label} ${part.text}`).join(", ")}`}>
    ${shown.map((part) => {
      const share = (100 * part.value) / (max || 1);
      return html`<span
        key=${part.name}
        class="stacked-part tone-${part.tone}"
        style=${{ width: `${share}%` }}
        title=${`${part.label} ${part.text}`}
      >
        ${share > 6 ? part.text : ""}
      </span>`;
    })}
  </div>`;
}
