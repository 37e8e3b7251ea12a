// Light or dark, and the colours for what is drawn on a canvas.
import { useEffect, useState } from "../vendor/htm-preact.js";
import { keep, read } from "./i18n.js";

export const THEMES = ["system", "light", "dark"];
const STORED = "perpline.theme";
const CHANGED = "perpline-colours";

export function firstTheme() {
  const stored = read(STORED);
  return THEMES.includes(stored) ? stored : "system";
}

export function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  keep(STORED, theme);
  tellColours();
}

/** To be called when colours may have changed (theme, language: in Korean up is red and down is blue). */
export function tellColours() {
  window.dispatchEvent(new Event(CHANGED));
}

/**
 * The colours in force, by name: text, muted, line, surface, accent, up, down, warn, bad, ok, series (a list of five).
 * A component that draws on a canvas calls this and draws again when the object changes.
 */
export function useColours() {
  const [colours, setColours] = useState(readColours);
  useEffect(() => {
    const look = () => setColours(readColours());
    const media = matchMedia("(prefers-color-scheme: dark)");
    window.addEventListener(CHANGED, look);
    media.addEventListener("change", look);
    return () => {
      window.removeEventListener(CHANGED, look);
      media.removeEventListener("change", look);
    };
  }, []);
  return colours;
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["text", "muted", "line", "surface", "accent", "up", "down", "warn", "bad", "ok"];
  const colours = Object.fromEntries(names.map((name) => [name, value(name)]));
  return { ...colours, series: [1, 2, 3, 4, 5].map((n) => value(`series-${n}`)) };
}
