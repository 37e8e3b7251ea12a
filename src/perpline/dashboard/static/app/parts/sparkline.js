// A line without axes.
import { Component, html } from "../../vendor/htm-preact.js";

/** `values`, oldest first, as a line of `width` × `height` px; drawn again only when the array is another one. */
export class Sparkline extends Component {
  shouldComponentUpdate(next) {
    return next.values !== this.props.values || next.label !== this.props.label;
  }

  render({ values, width = 100, height = 24, label }) {
    const known = (values ?? []).filter((value) => typeof value === "number");
    if (known.length < 2) return null;
    const low = Math.min(...known);
    const span = Math.max(...known) - low || 1;
    const step = width / (known.length - 1);
    const points = known.map((value, at) => {
      const y = height - 2 - ((value - low) / span) * (height - 4);
      return `${(at * step).toFixed(1)} ${y.toFixed(1)}`;
    });
    const tone = known.at(-1) >= known[0] ? "up" : "down";
    return html`<svg
      class="spark ${tone}"
      width=${width}
      height=${height}
      viewBox="0 0 ${width} ${height}"
      role="img"
      aria-label=${label}
    >
      <path d="M${points.join("L")}" fill="none" stroke="currentColor" stroke-width="1.3" />
    </svg>`;
  }
}
