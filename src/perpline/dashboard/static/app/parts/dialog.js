// A window over the page.
import { html, useEffect, useRef } from "../../vendor/htm-preact.js";

/**
 * The browser's own modal dialog: it keeps the focus inside. Escape, ✕ and a press beside it close it; with `isForm` no
 * press beside it, since what was typed would be lost; while `isBusy` nothing does, since the answer would be.
 */
export function Dialog({ title, testid, onClose, isForm = false, isBusy = false, t, children }) {
  const box = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  const beside = (event) => event.target === box.current && !isForm && !isBusy && onClose();
  const cancelled = (event) => isBusy && event.preventDefault();
  // A browser closes it at the second Escape whatever the page says.
  const closed = () => (isBusy ? box.current.showModal() : onClose());
  return html`<dialog
    ref=${box}
    data-testid=${testid}
    aria-labelledby=${`${testid}-title`}
    onCancel=${cancelled}
    onClose=${closed}
    onMouseDown=${beside}
  >
    <div class="dialog-body">
      <header class="dialog-head">
        <h2 id=${`${testid}-title`}>${title}</h2>
        <button type="button" class="quiet icon" disabled=${isBusy} onClick=${onClose} aria-label=${t("shell.close")}>✕</button>
      </header>
      ${children}
    </div>
  </dialog>`;
}
