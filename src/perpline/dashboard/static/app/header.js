// What stands above every page: mode and figures, navigation, language and theme.
import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { LANGUAGES } from "./i18n.js";
import { useLive } from "./live.js";
import { ModeBadge, Money } from "./parts/badge.js";
import { THEMES } from "./theme.js";

const LOUDEST_FIRST = ["live", "paper", "off"];

export function Header({ live, t, route, pages, theme, setTheme, setLanguage, ask }) {
  const [unfolded, setUnfolded] = useState(false);
  useEffect(() => setUnfolded(false), [route]);
  const nextTheme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  return html`<header class="top">
    <div class="bar">
      <a class="brand" href="#/overview" aria-label="perpline"><img src="/icon.svg" alt="" width="22" height="22" /><span>perpline</span></a>
      <${ModeNow} live=${live} t=${t} />
      <div class="acts">
        <button type="button" onClick=${() => ask("mode")} data-testid="mode-button">${t("shell.change_mode")}</button>
        <button type="button" class="danger" onClick=${() => ask("flatten")} data-testid="flatten-button">
          ${t("shell.flatten")}
        </button>
      </div>
      <button
        type="button"
        class="menu"
        aria-expanded=${unfolded ? "true" : "false"}
        aria-controls="menu"
        onClick=${() => setUnfolded(!unfolded)}
      >
        <span aria-hidden="true">☰</span> ${t("shell.menu")}
      </button>
      <div id="menu" class=${unfolded ? "menu-body unfolded" : "menu-body"}>
        <nav aria-label=${t("shell.pages")}>
          ${pages.map((each) => html`<a
            key=${each.name}
            href=${`#/${each.name}`}
            aria-current=${route.name === each.name ? "page" : undefined}
            data-testid=${`nav-${each.name}`}
            >${t(`page.${each.name}`)}</a
          >`)}
        </nav>
        <div class="switches">
          <label class="hidden" for="language">${t("shell.language")}</label>
          <select
            id="language"
            data-testid="lang-switch"
            value=${t.language}
            onChange=${(event) => setLanguage(event.target.value)}
          >
            ${Object.entries(LANGUAGES).map(([code, name]) => html`<option
              key=${code}
              value=${code}
              lang=${code}
              selected=${code === t.language}
            >
              ${name}
            </option>`)}
          </select>
          <button
            type="button"
            class="quiet"
            data-testid="theme-switch"
            data-theme=${theme}
            title=${t("shell.theme_next", { next: t(`theme.${nextTheme}`) })}
            onClick=${() => setTheme(nextTheme)}
          >
            <span aria-hidden="true">${{ system: "◐", light: "○", dark: "●" }[theme]}</span> ${t(`theme.${theme}`)}
          </button>
          <button type="button" class="quiet" onClick=${() => ask("about")}>${t("about.title")}</button>
          <button type="button" class="quiet icon" onClick=${() => ask("keys")} aria-label=${t("keys.title")}>?</button>
        </div>
      </div>
    </div>
    <${Figures} live=${live} t=${t} />
    <${Troubles} live=${live} t=${t} />
  </header>`;
}

/**
 * The mode of all symbols, and beside it the modes of single ones; money that is at risk is as loud there as here. The
 * server has them of the tables where no worker answers, so they are old only where the server is away.
 */
function ModeNow({ live, t }) {
  useLive(live, ["overview", "state"], 200);
  const isOld = live.state === "away";
  const { mode, modes, exceptions } = live.header;
  const found = LOUDEST_FIRST.filter((each) => exceptions?.[each]?.length);
  const count = (each) => modes?.[each] ?? exceptions[each].length; // not all of many are named
  const names = (each) => `${exceptions[each].join(", ")}${count(each) > exceptions[each].length ? ", …" : ""}`;
  return html`<div class=${isOld ? "modes old" : "modes"} title=${isOld ? t("header.mode_old") : undefined}>
    <${ModeBadge} mode=${mode} t=${t} large testid="mode-badge" />
    ${found.length > 0 &&
    html`<span class="modes" role="group" aria-label=${t("header.exceptions")} data-testid="mode-exceptions">
      ${found.map((each) => html`<${ModeBadge}
        key=${each}
        mode=${each}
        count=${count(each)}
        names=${names(each)}
        large=${each === "live"}
        t=${t}
      />`)}
    </span>`}
  </div>`;
}

/** The strip of figures. Without the worker they are its last ones, and look it; how many connections live is not known. */
function Figures({ live, t }) {
  useLive(live, ["overview", "state"], 200);
  useSecond();
  const { account, equity, pnl_today, weight, close_to_signal_ms: latency, worker } = live.header;
  const away = live.state !== "live" ? "away" : worker;
  const isOld = away !== "live";
  const old = { class: isOld ? "old" : "", title: isOld ? t("header.old") : undefined };
  const connections = isOld ? null : live.header.connections;
  const share = weight?.limit ? weight.used / weight.limit : 0;
  const lost = connections ? connections.all - connections.live : 0;
  return html`<div class="strip" role="region" aria-label=${t("header.figures")} tabindex="0"><dl>
    <div class="strip-item">
      <dt>${t("header.equity")} ${account && html`<small>${t(`mode.${account}`)}</small>`}</dt>
      <dd data-testid="header-equity" data-value=${equity} ...${old}>${t.format.usdt(equity)} <small>USDT</small></dd>
    </div>
    <div class="strip-item">
      <dt>${t("header.pnl_today")}</dt>
      <dd ...${old}><${Money} value=${pnl_today} t=${t} testid="header-pnl" /></dd>
    </div>
    <div class="strip-item">
      <dt>${t("header.connections")}</dt>
      <dd data-testid="header-connections" ...${old} class=${lost ? "bad" : old.class}>
        ${connections ? `${connections.live}/${connections.all}` : t.format.none}
        ${lost > 0 && html` <small>${t("header.connections_lost", { n: lost })}</small>`}
      </dd>
    </div>
    <div class="strip-item">
      <dt>${t("header.weight")}</dt>
      <dd data-testid="header-weight" ...${old} class=${share > 0.8 && !isOld ? "bad" : old.class}>
        <span class="meter" aria-hidden="true"><span style=${{ width: `${Math.min(100, share * 100)}%` }}></span></span>
        ${weight ? `${t.format.number(weight.used)}/${t.format.number(weight.limit)}` : t.format.none}
      </dd>
    </div>
    <div class="strip-item">
      <dt title=${t("header.latency_hint")}>${t("header.latency")}</dt>
      <dd data-testid="header-latency" ...${old}>
        ${t.format.ms(latency?.p50)} <small>p50</small> · ${t.format.ms(latency?.p99)} <small>p99</small>
      </dd>
    </div>
    <div class="strip-item">
      <dt>${t("header.worker")}</dt>
      <dd data-testid="header-worker" class=${away === "live" ? "ok" : "bad"}>
        <span aria-hidden="true">${away === "live" ? "●" : "○"}</span> ${t(`worker.${away ?? "away"}`)}
        ${away === "live" && live.header.leads === false && html` <small>${t("worker.stands_by")}</small>`}
      </dd>
    </div>
    <div class="strip-item">
      <dt>${t("header.time")}</dt>
      <dd ...${old} class=${`time ${old.class}`} title=${t.format.iso(live.now() && Math.floor(live.now() / 1000) * 1000)}>
        ${t.format.clock(live.now())}
        ${live.header.speed && live.header.speed !== 1 ? html` <small>×${t.format.quantity(live.header.speed)}</small>` : ""}
      </dd>
    </div>
  </dl></div>`;
}

function Troubles({ live, t }) {
  useLive(live, ["overview", "state"], 500);
  const found = [];
  if (live.state === "away") found.push(t("trouble.page_away"));
  else if (live.header.worker === "away") found.push(t("trouble.worker_away"), ...(live.header.away ? [live.header.away] : []));
  else found.push(...(live.header.trouble ?? []));
  if (!found.length) return null;
  const [first, ...more] = found;
  return html`<div class="troubles" role="alert" data-testid="troubles">
    <span class="sign" aria-hidden="true">!</span>
    ${more.length
      ? html`<details>
          <summary>${first} <span class="muted">${t("trouble.more", { n: more.length })}</span></summary>
          <ul>
            ${more.map((each) => html`<li key=${each}>${each}</li>`)}
          </ul>
        </details>`
      : html`<p>${first}</p>`}
  </div>`;
}

/** Draws the component again each second. */
export function useSecond() {
  const [, draw] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => draw((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, []);
}
