// The shell: session, routes, header, navigation, keys.
//
// How a page is written
// ---------------------
// A page is one file, app/pages/NAME.js, shown at #/NAME and, with parameters, at #/NAME/A/B. It exports by default a
// Preact component; there is no build, htm's html`…` is used for markup:
//
//     import { html, useState } from "../../vendor/htm-preact.js";
//     import { useApi } from "../api.js";
//     import { useLive } from "../live.js";
//     import { Page, Panel } from "../parts/page.js";
//     import { Table } from "../parts/table.js";
//
//     export default function Latency({ live, api, t, params, open, say }) {
//       useLive(live, ["overview"], 1000);                               // draw again when live data changes, ≤ 1 a second
//       const { data, error } = useApi(api, "latency", { minutes: 120 }, 10); // ask /api/latency every 10 s
//       return html`<${Page} name="latency" title=${t("latency.title")} ready=${Boolean(data)} error=${error} t=${t}>
//         ${data && html`<${Panel} title=${t("latency.stages")}>…<//>`}
//       <//>`;
//     }
//
// * `live` is live.js (rows, header, log, now()), `api` is api.js (get, post, session), `t` i18n.js: every visible text is
//   t("page.key") with words in app/words/en.json AND ko.json (one object a page there; tests compare the keys); numbers
//   and times by t.format (format.js). `params` is the list of decoded parts of the address after the page's name,
//   `open("#/symbol/BTCUSDT")` goes somewhere, `say(text)` shows a short message, `bad` as second argument for errors.
// * <Page> sets data-testid="page-NAME" and data-ready. The data is ready when what was asked for is drawn.
// * parts/: Page, Panel, Figure, errorText (page.js); Table, WindowTable (table.js); ModeBadge, Side, DecisionBadge, Level,
//   Money (badge.js); said (said.js: words for what the tables hold); LineChart (chart.js, uPlot); Sparkline; Dialog.
//   Colours for a canvas: useColours() of theme.js.
// * Styles of single pages are in pages.css. Classes of style.css for all of them: panels (a grid of Panel; "broad" for
//   tables), figures (a <dl> of Figure), note, badge, muted, up, down, right, hidden (for screen readers only), toolbar,
//   field, button variants "primary", "quiet" and "danger".
// * No inline <style>, no style strings, no addresses of other hosts: the Content-Security-Policy forbids them.
//   `style=${{ width: "3px" }}` (an object) is set through the DOM and allowed. A new page is added to PAGES below.
import { Component, html, render, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { FlattenDialog, ModeDialog } from "./actions.js";
import { Api } from "./api.js";
import { Header } from "./header.js";
import { firstLanguage, loadWords } from "./i18n.js";
import { Live, useHeard } from "./live.js";
import { Dialog } from "./parts/dialog.js";
import { errorText } from "./parts/page.js";
import { firstTheme, setTheme, tellColours } from "./theme.js";

/** In the order of the navigation, with the key that opens each after "g"; those without a key are reached by links. */
export const PAGES = [
  { name: "overview", key: "o" },
  { name: "minutes", key: "m" },
  { name: "trading", key: "t" },
  { name: "health", key: "h" },
  { name: "latency", key: "y" },
  { name: "models", key: "d" },
  { name: "log", key: "l" },
  { name: "symbol", key: null },
  { name: "explain", key: null },
];
const SAY_MS = 6_000;

function App({ live, api, firstWords }) {
  const [t, setWords] = useState(() => firstWords);
  const [theme, chooseTheme] = useState(firstTheme);
  const [route, setRoute] = useState(readRoute);
  const [dialog, setDialog] = useState(null);
  const [said, setSaid] = useState(null);
  const [session, setSession] = useState({ value: null, error: null });

  const begin = async () => {
    try {
      setSession({ value: await api.begin(), error: null });
    } catch (error) {
      // That it does not answer may pass, and the page stays; that it lets us in no more does not.
      setSession((old) => ({ value: error.status ? null : old.value, error }));
    }
  };
  useEffect(() => {
    begin();
  }, []);
  useEffect(() => {
    if (!session.error || session.error.status) return undefined;
    const timer = setTimeout(begin, 2_000); // it did not answer: it may be starting
    return () => clearTimeout(timer);
  }, [session]);
  useEffect(() => {
    if (session.value) live.open();
  }, [session.value !== null]);
  useEffect(() => live.on("state", () => live.state === "away" && begin()), []);
  useEffect(() => {
    const go = () => setRoute(readRoute());
    window.addEventListener("hashchange", go);
    return () => window.removeEventListener("hashchange", go);
  }, []);
  useEffect(() => {
    document.title = `${titleOf(t, route)} · perpline`;
  }, [route, t]);
  useKeys((key) => {
    if (key === "?") setDialog("keys");
    else if (key === "/") document.querySelector("[data-filter]")?.focus();
    else if (key.startsWith("g ")) {
      const page = PAGES.find((each) => each.key === key[2]);
      if (page) open(`#/${page.name}`);
    } else return false;
    return true;
  });
  useEffect(() => {
    if (!said) return undefined;
    const timer = setTimeout(() => setSaid(null), SAY_MS);
    return () => clearTimeout(timer);
  }, [said]);

  const say = (text, bad = false) => setSaid({ text, bad });
  const setLanguage = async (language) => {
    try {
      const words = await loadWords(language);
      setWords(() => words);
      tellColours();
    } catch (error) {
      say(error.message, true);
    }
  };
  const changeTheme = (next) => {
    setTheme(next);
    chooseTheme(next);
  };

  const told = html`<div class="said" role="status" aria-live="polite">
    ${said && html`<p class=${said.bad ? "bad" : ""}>${said.text}</p>`}
  </div>`;
  if (session.error && session.error.status) {
    return html`<main class="gate"><h1>perpline</h1><p role="alert">${errorText(t, session.error)}</p></main>${told}`;
  }
  if (!session.value) {
    return html`<main class="gate">
      <h1>perpline</h1>
      <p role="status">${t(session.error ? "shell.no_answer" : "shell.loading")}</p>
    </main>`;
  }
  const close = () => setDialog(null);
  const shared = { live, api, t, open, say };
  return html`<a class="skip" href="#content" onClick=${skip}>${t("shell.skip")}</a>
    <${Header}
      ...${shared}
      route=${route}
      pages=${PAGES.filter((each) => each.key)}
      theme=${theme}
      setTheme=${changeTheme}
      setLanguage=${setLanguage}
      ask=${setDialog}
    />
    <${Main} live=${live}>
      <${Boundary} key=${`${route.name}/${route.params.join("/")}`} t=${t}>
        <${Routed} ...${shared} route=${route} />
      <//>
    <//>
    ${dialog === "mode" && html`<${ModeDialog} ...${shared} onClose=${close} />`}
    ${dialog === "flatten" && html`<${FlattenDialog} ...${shared} onClose=${close} />`}
    ${dialog === "keys" && html`<${Keys} t=${t} onClose=${close} />`}
    ${dialog === "about" && html`<${About} t=${t} api=${api} onClose=${close} />`}
    ${told}`;
}

/** Where the pages stand. Of what is live there the style sheet shows that it is old, while nothing is heard. */
function Main({ live, children }) {
  const isHeard = useHeard(live);
  return html`<main id="content" tabindex="-1" class=${isHeard ? "" : "unheard"}>${children}</main>`;
}

/** The page of the route, loaded when it is first shown. */
function Routed({ route, ...shared }) {
  const [found, setFound] = useState(null);
  const first = useRef(true);
  useEffect(() => {
    let wanted = true;
    const take = (Page) => wanted && setFound({ name: route.name, Page });
    if (PAGES.some((each) => each.name === route.name)) {
      import(`./pages/${route.name}.js`).then(
        (page) => take(page.default),
        (error) => {
          console.error(error);
          take(NotLoaded);
        },
      );
    } else take(NotThere);
    return () => {
      wanted = false;
    };
  }, [route.name]);
  useEffect(() => {
    if (found && document.activeElement?.closest("nav")) document.getElementById("heading")?.focus();
    first.current = false;
  }, [found]);
  if (found?.name !== route.name) return html`<p class="muted loading">${shared.t("shell.loading")}</p>`;
  return html`<${found.Page} ...${shared} name=${route.name} params=${route.params} />`;
}

function NotThere({ name, t }) {
  return html`<section class="page" data-testid="page-none" data-ready="true">
    <h1 id="heading" tabindex="-1">${t("shell.not_there")}</h1>
    <p>${t("shell.not_there_text", { name })} <a href="#/overview">${t("page.overview")}</a></p>
  </section>`;
}

/** A browser may keep it in mind that a module did not come: all is loaded again, once the server answers. */
function NotLoaded({ name, t, say }) {
  const again = async () => {
    try {
      await fetch(new URL(`./pages/${name}.js`, import.meta.url), { cache: "no-store" });
    } catch {
      say(t("shell.no_answer"), true);
      return;
    }
    location.reload();
  };
  return html`<section class="page" data-testid="page-not-loaded" data-ready="true">
    <h1 id="heading" tabindex="-1">${t.has(`page.${name}`) ? t(`page.${name}`) : name}</h1>
    <p class="note bad" role="alert">${t("shell.not_loaded")}</p>
    <p><button type="button" class="primary" data-testid="load-again" onClick=${again}>${t("shell.try_again")}</button></p>
  </section>`;
}

/** A page that fails says so, and the others go on. */
class Boundary extends Component {
  componentDidCatch(error) {
    console.error(error);
    this.setState({ error });
  }

  render({ t, children }, { error }) {
    if (!error) return children;
    return html`<section class="page" data-testid="page-failed">
      <h1>${t("shell.failed")}</h1>
      <p class="note bad" role="alert">${String(error)}</p>
    </section>`;
  }
}

function Keys({ t, onClose }) {
  const keys = [
    ["?", t("keys.help")],
    ["/", t("keys.filter")],
    ...PAGES.filter((each) => each.key).map((each) => [`g ${each.key}`, t(`page.${each.name}`)]),
    ["↑ ↓ PgUp PgDn Home End", t("keys.rows")],
    ["Enter", t("keys.enter")],
    ["e", t("keys.explain")],
    ["Esc", t("keys.escape")],
  ];
  return html`<${Dialog} title=${t("keys.title")} testid="keys-dialog" onClose=${onClose} t=${t}>
    <dl class="keys">
      ${keys.map(([key, text]) => html`<div key=${key}>
        <dt>${key.split(" ").map((each) => html`<kbd key=${each}>${each}</kbd> `)}</dt>
        <dd>${text}</dd>
      </div>`)}
    </dl>
  <//>`;
}

function About({ t, api, onClose }) {
  const { version, network, database, slot } = api.session;
  const facts = { version, network, database, slot };
  return html`<${Dialog} title=${t("about.title")} testid="about-dialog" onClose=${onClose} t=${t}>
    <dl class="figures">
      ${Object.entries(facts).map(([name, value]) => html`<div class="figure" key=${name}>
        <dt>${t(`about.${name}`)}</dt>
        <dd>${value}</dd>
      </div>`)}
    </dl>
    <p>${t("about.made_with")}</p>
    <ul>
      <li>Preact, htm, uPlot</li>
      <li>
        TradingView Lightweight Charts™. Copyright (с) 2026 TradingView, Inc.${" "}
        <a href="https://www.tradingview.com/" target="_blank" rel="noopener noreferrer">https://www.tradingview.com/</a>
      </li>
    </ul>
    <p class="muted">${t("about.licences")}</p>
  <//>`;
}

/** Calls `pressed` with single keys, and with "g x" for g and then x, where nobody is typing; true: it was for us. */
function useKeys(pressed) {
  const newest = useRef(pressed);
  newest.current = pressed;
  useEffect(() => {
    let before = "";
    const listen = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest?.("input, textarea, select, dialog")) return;
      const key = before === "g" ? `g ${event.key}` : event.key;
      before = event.key;
      if (newest.current(key)) event.preventDefault();
    };
    window.addEventListener("keydown", listen);
    return () => window.removeEventListener("keydown", listen);
  }, []);
}

function readRoute() {
  const [name, ...params] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  return { name: name ?? "overview", params };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function titleOf(t, route) {
  const name = t.has(`page.${route.name}`) ? t(`page.${route.name}`) : route.name;
  return [route.params[0], name].filter(Boolean).join(" · ");
}

function open(hash) {
  location.hash = hash;
}

/** The address after # is the route's: the skip link must not change it. */
function skip(event) {
  event.preventDefault();
  document.getElementById("content").focus();
}

setTheme(firstTheme());
const api = new Api();
const live = new Live(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
loadWords(firstLanguage()).then((firstWords) =>
  render(html`<${App} live=${live} api=${api} firstWords=${firstWords} />`, document.getElementById("app")),
);
