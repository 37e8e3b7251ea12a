// Words and the shape of numbers and times in the language in use.
import { makeFormat } from "./format.js";

export const LANGUAGES = { en: "English", ko: "한국어" };
const STORED = "perpline.language";

/** The language that was chosen before, else the browser's if there are words in it, else English. */
export function firstLanguage() {
  const stored = read(STORED);
  if (stored in LANGUAGES) return stored;
  return navigator.languages.map((each) => each.slice(0, 2)).find((each) => each in LANGUAGES) ?? "en";
}

/**
 * `t(key, values)`: the words of `key` ("overview.price"), with {name} replaced by values.name.
 * `t.has(key)`, `t.language`, and `t.format` (format.js). A key without words is shown as it is, so that it is noticed.
 */
export async function loadWords(language) {
  const answer = await fetch(new URL(`./words/${language}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`no words in ${language}`);
  const words = await answer.json();
  const find = (key) => key.split(".").reduce((part, name) => part?.[name], words);
  const t = (key, values) => {
    const text = find(key);
    if (typeof text !== "string") return key;
    return values ? text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all) : text;
  };
  t.has = (key) => typeof find(key) === "string";
  t.language = language;
  t.format = makeFormat(language, t);
  keep(STORED, language);
  document.documentElement.lang = language;
  return t;
}

/** What this browser has kept, null where it keeps nothing. */
export function read(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // storage can be forbidden: then choices last as long as the page
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // as above
  }
}
