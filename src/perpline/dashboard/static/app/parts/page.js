// The frame of a page.
import { html } from "../../vendor/htm-preact.js";
import { ApiError } from "../api.js";

/**
 * Root of a page: heading, errors, contents. `name` is that of the file; `ready` says that its data is drawn;
 * `error` an ApiError or null; `aside` what stands right of the heading (filters, switches).
 */
export function Page({ name, title, ready, error = null, aside = null, t, children }) {
  return html`<section class="page page-${name}" data-testid="page-${name}" data-ready=${ready ? "true" : "false"}>
    <div class="page-head">
      <h1 id="heading" tabindex="-1">${title}</h1>
      ${aside && html`<div class="page-aside">${aside}</div>`}
    </div>
    ${error && html`<p class="note bad" role="alert">${errorText(t, error)}</p>`}
    ${!ready && !error && html`<p class="muted loading">${t("shell.loading")}</p>`} ${children}
  </section>`;
}

/** A titled part of a page; `full`: as wide as the page. More attributes (data-testid) go to its <section>. */
export function Panel({ title, aside = null, full = false, children, ...more }) {
  return html`<section class=${full ? "panel full" : "panel"} ...${more}>
    <header class="panel-head"><h2>${title}</h2>${aside}</header>
    ${children}
  </section>`;
}

/** A figure with its name: use inside <dl class="figures">. */
export function Figure({ name, value, hint = undefined, tone = "", testid = undefined }) {
  return html`<div class="figure ${tone}" title=${hint}>
    <dt>${name}</dt>
    <dd data-testid=${testid}>${value}</dd>
  </div>`;
}

/** A time of day, with its day where that is not today's. */
export function recent(t, ms, now) {
  if (!ms) return t.format.none;
  return Math.floor(ms / 86_400_000) === Math.floor(now / 86_400_000) ? t.format.clock(ms) : t.format.dayMinute(ms);
}

/** Why an answer has only what the worker tells, as an error to be shown above it; null where it has the tables too. */
export function withoutTables(data) {
  return data?.database_error ? new ApiError(data.database_error, 503) : null;
}

/** The server's sentence, ours where we have one for it, or that it does not answer. */
export function errorText(t, error) {
  if (error.status === 0) return t("shell.no_answer");
  return error.status === 401 ? t("shell.not_let_in") : error.message;
}
