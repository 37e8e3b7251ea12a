// A window over the page.
import { html, useEffect, useRef } from "../../vendor/htm-preact.js";

/** The browser's own modal dialog: it keeps the focus inside, and Escape closes it. */
export function Dialog({ title, testid, onClose, t, children }) {
  const box = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  const outside = (event) => event.target === box.current && onClose();
  return html`<dialog ref=${box} data-testid=${testid} aria-labelledby=${`${testid}-title`} onClose=${onClose} onMouseDown=${outside}>
    <div class="dialog-body">
      <header class="dialog-head">
        <h2 id=${`${testid}-title`}>${title}</h2>
        <button type="button" class="quiet icon" onClick=${onClose} aria-label=${t("shell.close")}>✕</button>
      </header>
      ${children}
    </div>
  </dialog>`;
}
