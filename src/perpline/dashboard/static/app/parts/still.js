// What keeps a page from drawing more often, or less steadily, than it has to.
import { Component, html, useRef } from "../../vendor/htm-preact.js";

/** The component `draw`, drawn again only when one of its properties is another value. */
export function still(draw) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const names = new Set([...Object.keys(next), ...Object.keys(this.props)]);
      return [...names].some((name) => next[name] !== this.props[name]);
    }

    render(properties) {
      return html`<${draw} ...${properties} />`;
    }
  };
}

/** `value`, or the last one that was not null: what is shown while another is on its way. */
export function useKept(value) {
  const kept = useRef(null);
  if (value !== null) kept.current = value;
  return kept.current;
}
