// Another symbol, by name.
import { html, useEffect, useState } from "../../vendor/htm-preact.js";

/** A field that completes the names of `symbols` and calls `onChoose` with one of them; with any, where none is known. */
export function SymbolChoice({ symbols, value, t, onChoose }) {
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  const choose = (written) => {
    const wanted = written.trim().toUpperCase();
    if (wanted && wanted !== value && (!symbols.length || symbols.includes(wanted))) onChoose(wanted);
  };
  return html`<form
    class="inline"
    onSubmit=${(event) => {
      event.preventDefault();
      choose(text);
    }}
  >
    <label class="inline">
      <span class="muted">${t("col.symbol")}</span>
      <input
        list="symbol-names"
        data-filter
        data-testid="symbol-choice"
        spellcheck=${false}
        autocomplete="off"
        value=${text}
        onInput=${(event) => setText(event.target.value)}
        onChange=${(event) => choose(event.target.value)}
      />
    </label>
    <datalist id="symbol-names">${symbols.map((each) => html`<option key=${each} value=${each}></option>`)}</datalist>
  </form>`;
}
