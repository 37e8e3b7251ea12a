// Words for what the tables hold.

/** The words of `kind` for a value of the tables; the value itself where there are none. */
export function said(t, kind, value) {
  if (value === null || value === undefined || value === "") return "";
  return t.has(`${kind}.${value}`) ? t(`${kind}.${value}`) : String(value);
}
