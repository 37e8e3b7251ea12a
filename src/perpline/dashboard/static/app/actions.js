// What a person may do here: change the mode, close what is open. The same confirmations as on the command line.
import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { ModeBadge } from "./parts/badge.js";
import { Dialog } from "./parts/dialog.js";
import { errorText } from "./parts/page.js";

const MODES = ["off", "paper", "live"];
const POSITIONS = ["keep", "protect", "flatten"];
const DURATION = /^\s*0*[1-9]\d{0,4}[mhd]\s*$/i;

export function ModeDialog({ live, api, t, say, onClose }) {
  const [mode, setMode] = useState(live.header.mode === "off" ? "paper" : "off");
  const [symbols, setSymbols] = useState("");
  const [reason, setReason] = useState("");
  const [lasts, setLasts] = useState("8h");
  const [chosenForever, setForever] = useState(null);
  const [positions, setPositions] = useState("keep");
  const [typed, setTyped] = useState("");
  const [error, setError] = useState(null);
  const [isSent, setSent] = useState(false);
  const isFirstLive = mode === "live" && !api.session.live_confirmed;
  const isForever = chosenForever ?? mode === "paper"; // as on the command line, live wants it said
  const names = namesIn(symbols);

  const submit = async (event) => {
    event.preventDefault();
    if (!reason.trim()) return setError({ message: t("mode_dialog.wants_reason") });
    if (mode !== "off" && !isForever && !DURATION.test(lasts)) return setError({ message: t("mode_dialog.wants_time") });
    if (isFirstLive && typed !== "LIVE") return setError({ message: t("mode_dialog.wants_live") });
    setSent(true);
    setError(null);
    try {
      const duration = mode === "off" ? null : isForever ? "forever" : lasts.trim().toLowerCase();
      await api.post("mode", {
        mode,
        symbols: names,
        reason: reason.trim(),
        for: duration,
        positions,
        confirm_live: isFirstLive,
      });
      say(t("mode_dialog.done", { mode: t(`mode.${mode}`), symbols: names.join(", ") || t("mode_dialog.all") }));
      onClose();
      await api.begin();
    } catch (refusal) {
      setError(refusal);
      setSent(false);
    }
    return undefined;
  };

  return html`<${Dialog} title=${t("mode_dialog.title")} testid="mode-dialog" isForm isBusy=${isSent} onClose=${onClose} t=${t}>
    <form onSubmit=${submit} noValidate>
      <fieldset class="choice">
        <legend>${t("mode_dialog.mode")}</legend>
        <div class="choices three">
          ${MODES.map((each) => html`<label key=${each} class=${each === mode ? "chosen" : ""}>
            <input
              type="radio"
              name="mode"
              value=${each}
              checked=${each === mode}
              onChange=${() => setMode(each)}
              data-testid=${`mode-${each}`}
            />
            <${ModeBadge} mode=${each} t=${t} />
            <small>${t(`mode_dialog.${each}`)}</small>
          </label>`)}
        </div>
      </fieldset>
      <${SymbolsField} value=${symbols} setValue=${setSymbols} t=${t} testid="mode-symbols" />
      <label class="field">
        <span>${t("mode_dialog.reason")}</span>
        <input
          value=${reason}
          required
          maxlength="500"
          data-testid="mode-reason"
          onInput=${(event) => setReason(event.target.value)}
        />
      </label>
      ${mode !== "off" &&
      html`<div class="field">
        <label for="mode-for">${t("mode_dialog.for")}</label>
        <div class="inline">
          <input
            id="mode-for"
            class="short"
            value=${lasts}
            disabled=${isForever}
            data-testid="mode-for"
            aria-describedby="mode-for-hint"
            onInput=${(event) => setLasts(event.target.value)}
          />
          <label class="check">
            <input
              type="checkbox"
              checked=${isForever}
              data-testid="mode-forever"
              onChange=${(event) => setForever(event.target.checked)}
            />
            ${t("mode_dialog.forever")}
          </label>
        </div>
        <small id="mode-for-hint" class="muted">${t("mode_dialog.for_hint")}</small>
      </div>`}
      <fieldset class="choice">
        <legend>${t("mode_dialog.positions")}</legend>
        <div class="choices">
          ${POSITIONS.map((each) => html`<label key=${each} class=${each === positions ? "chosen" : ""}>
            <input
              type="radio"
              name="positions"
              value=${each}
              checked=${each === positions}
              data-testid=${`positions-${each}`}
              onChange=${() => setPositions(each)}
            />
            <b>${t(`positions.${each}`)}</b> <small>${t(`mode_dialog.positions_${each}`)}</small>
          </label>`)}
        </div>
      </fieldset>
      ${isFirstLive &&
      html`<label class="field confirm">
        <span>${t("mode_dialog.first_live")}</span>
        <input
          value=${typed}
          autocomplete="off"
          spellcheck=${false}
          placeholder="LIVE"
          data-testid="mode-confirm"
          onInput=${(event) => setTyped(event.target.value)}
        />
      </label>`}
      ${error && html`<p class="note bad" role="alert" data-testid="mode-error">${errorText(t, error)}</p>`}
      <footer class="dialog-foot">
        <button type="button" class="quiet" disabled=${isSent} onClick=${onClose}>${t("shell.cancel")}</button>
        <button type="submit" class=${mode === "live" ? "danger" : "primary"} disabled=${isSent} data-testid="mode-submit">
          ${t("mode_dialog.submit", { mode: t(`mode.${mode}`) })}
        </button>
      </footer>
    </form>
  <//>`;
}

export function FlattenDialog({ api, t, say, onClose }) {
  const [account, setAccount] = useState("both");
  const [symbols, setSymbols] = useState("");
  const [typed, setTyped] = useState("");
  const [error, setError] = useState(null);
  const [isSent, setSent] = useState(false);
  const [done, setDone] = useState(null);
  const isHere = useRef(true);
  useEffect(() => () => (isHere.current = false), []);

  const submit = async (event) => {
    event.preventDefault();
    if (typed !== "FLATTEN") return setError({ message: t("flatten.wants_word") });
    setSent(true);
    setError(null);
    try {
      const answer = await api.post("flatten", { account, symbols: namesIn(symbols), confirm: typed });
      const left = leftOf(answer.done);
      if (isHere.current) setDone(answer.done);
      else say(left.length ? notAll(t, left) : t("flatten.is_done"), left.length > 0);
    } catch (refusal) {
      if (isHere.current) setError(refusal);
      else say(errorText(t, refusal), true);
    }
    setSent(false);
    return undefined;
  };

  return html`<${Dialog} title=${t("flatten.title")} testid="flatten-dialog" isForm isBusy=${isSent} onClose=${onClose} t=${t}>
    ${done
      ? html`<${Flattened} done=${done} t=${t} onClose=${onClose} />`
      : html`<form onSubmit=${submit} noValidate>
          <p>${t("flatten.text")}</p>
          <label class="field">
            <span>${t("flatten.account")}</span>
            <select value=${account} data-testid="flatten-account" onChange=${(event) => setAccount(event.target.value)}>
              ${["both", "paper", "live"].map((each) => html`<option key=${each} value=${each}>
                ${t(`flatten.${each}`)}
              </option>`)}
            </select>
          </label>
          <${SymbolsField} value=${symbols} setValue=${setSymbols} t=${t} testid="flatten-symbols" />
          <label class="field confirm">
            <span>${t("flatten.type")}</span>
            <input
              value=${typed}
              autocomplete="off"
              spellcheck=${false}
              placeholder="FLATTEN"
              data-testid="flatten-confirm"
              onInput=${(event) => setTyped(event.target.value)}
            />
          </label>
          ${error && html`<p class="note bad" role="alert" data-testid="flatten-error">${errorText(t, error)}</p>`}
          <footer class="dialog-foot">
            <button type="button" class="quiet" disabled=${isSent} onClick=${onClose}>${t("shell.cancel")}</button>
            <button type="submit" class="danger" disabled=${isSent} data-testid="flatten-submit">
              ${t(isSent ? "flatten.running" : "flatten.submit")}
            </button>
          </footer>
        </form>`}
  <//>`;
}

function Flattened({ done, t, onClose }) {
  const left = leftOf(done);
  return html`<div data-testid="flatten-done">
    ${!done.length && html`<p>${t("flatten.nothing")}</p>`}
    ${done.length > 0 &&
    html`<table>
      <thead>
        <tr>
          <th scope="col">${t("flatten.account")}</th>
          <th scope="col">${t("col.symbol")}</th>
          <th scope="col" class="right">${t("flatten.was_open")}</th>
          <th scope="col" class="right">${t("flatten.left")}</th>
          <th scope="col"><span class="hidden">${t("flatten.error")}</span></th>
        </tr>
      </thead>
      <tbody>
        ${done.map((each) => html`<tr key=${`${each.account}${each.symbol}`}>
          <td>${t(`mode.${each.account}`)}</td>
          <td>${each.symbol}</td>
          <td class="right">${t.format.quantity(each.closed)}</td>
          <td class="right">${t.format.quantity(each.left)}</td>
          <td>${each.error}</td>
        </tr>`)}
      </tbody>
    </table>`}
    ${left.length > 0 &&
    html`<p class="note bad" role="alert">
      ${notAll(t, left)}
    </p>`}
    <footer class="dialog-foot">
      <button type="button" class="primary" onClick=${onClose}>${t("shell.close")}</button>
    </footer>
  </div>`;
}

/** What of the answer was not closed. */
function leftOf(done) {
  return done.filter((each) => Number(each.left) !== 0 || each.error);
}

function notAll(t, left) {
  return t("flatten.not_all", { symbols: left.map((each) => each.symbol).join(", ") });
}

function SymbolsField({ value, setValue, t, testid }) {
  return html`<label class="field">
    <span>${t("mode_dialog.symbols")}</span>
    <input
      value=${value}
      placeholder=${t("mode_dialog.all")}
      autocomplete="off"
      autocapitalize="characters"
      spellcheck=${false}
      data-testid=${testid}
      onInput=${(event) => setValue(event.target.value)}
    />
    <small class="muted">${t("mode_dialog.symbols_hint")}</small>
  </label>`;
}

function namesIn(text) {
  return text.toUpperCase().split(/[\s,;]+/).filter(Boolean);
}
