"""Makes docs/features.md from the catalogue in perpline/features/catalogue.py.

.venv/bin/python docs/make_features.py
"""

from itertools import groupby
from pathlib import Path

from perpline.features import catalogue
from perpline.features.catalogue import CATALOGUE, SCHEMAS, Feature, lookback_of, schema_hash

PAGE = Path(__file__).parent / "features.md"

HEAD = """\
# Features

<!-- Made by docs/make_features.py from src/perpline/features/catalogue.py. Change it there and run that. -->

A vector has {count} columns. `perpline features list` prints them (`--group F`, `--schema candles`, `--json`);
`perpline features build` writes them for stored history, as a dataset that `perpline train` learns from:

    perpline features build --from 2026-10-01 --to 2026-11-01 --symbols BTCUSDT,ETHUSDT --schema core --out dataset

The folder holds `manifest.json` (columns, rows, a hash of every symbol and day, and `dataset_hash`), and of each symbol
`SYMBOL.times.npy` (closes, milliseconds) and `SYMBOL.features.npy` (float32, a row for each candle). The same command
gives the same bytes, and what is built up to some time is, behind the head of 128 bytes, a prefix of what is built up
to a later one. A build that was broken off goes on with the symbols that were not finished.

Live and history are the same compiled code over integers in finite windows (`features/kernel.py`): live steps once a
close, history does the same in a loop, and both have the same bits. It is compiled once for each machine, which takes
some seconds, and kept in `$XDG_CACHE_HOME/perpline/numba`.

## Notation

{notation}

No value (NaN): {rules}

A column whose input does not exist is not in the schema; it is never made up. Clips are part of the schema. `listed` is
in no schema: when a symbol was listed is stored nowhere, so it has no value, live as in history.

A minute of the best bid and ask is over when the exchange's clock says so. Where a model in service uses group M, the
row in `book_minutes` is made at the decision, of what had come by then, and what comes later counts towards the next
minute: live and history read the same row. Without such a model the row is made with the next update. Two cases remain
that parity counts as mismatches: a process that was killed before it had written the row it decided by
(`buffer_max_age_s`), and two processes on one database that heard different updates, of whose rows the newer is kept.

## Schemas

| name | columns | minutes held | hash |
|---|---:|---:|---|
"""

TITLES = {
    "A": "returns and momentum",
    "B": "volatility and the shape of the path",
    "C": "the shape of the last candle",
    "D": "location and trend",
    "E": "volume and activity",
    "F": "taker flow",
    "G": "premium index, mark, index, funding",
    "H": "open interest",
    "I": "positioning",
    "J": "longer bars, closed ones only",
    "K": "cross-section (optional)",
    "L": "calendar (optional)",
    "M": "best bid and ask (optional; needs our own recording)",
}


def main() -> None:
    PAGE.write_text(features_page(), encoding="utf-8")


def features_page() -> str:
    """The page as it should be."""
    notation = (catalogue.__doc__ or "").split("Notation. ", 1)[1].strip()
    schemas = "\n".join(
        f"| `{name}` | {len(features)} | {lookback_of(features):,} | `{schema_hash(features)}` |"
        for name, features in SCHEMAS.items()
    )
    groups = "\n\n".join(_group(group, list(features)) for group, features in groupby(CATALOGUE, lambda f: f.group))
    head = HEAD.format(count=len(CATALOGUE), notation=notation, rules=" ".join(RULES))
    return f"{head}{schemas}\n\n{groups}\n"


RULES = (
    "N1, until `minutes` contiguous minutes are held, never a partial window, and while more than 5 % of them are",
    "synthetic; N2, while a bar is missing; N3, with a zero denominator (a ratio is 0 if its numerator is 0 too), and",
    "the logarithm of 0; N4, of what is too old (open interest and ratios 20 minutes, funding 1.1 times its interval,",
    "best bid and ask 5 s).",
)


def _group(group: str, features: list[Feature]) -> str:
    rows = "\n".join(
        f"| `{f.name}` | {_cell(f.formula)} | {', '.join(f.inputs)} | {f.lookback_min:,} | {_clip(f)} | "
        f"{' '.join(f.nan)} |"
        for f in features
    )
    head = "| name | what it is | made of | minutes | clip | empty |\n|---|---|---|---:|---|---|"
    return f"## {group}: {TITLES[group]}\n\n{head}\n{rows}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _clip(feature: Feature) -> str:
    return "" if feature.clip is None else f"{feature.clip[0]:g} to {feature.clip[1]:g}"


if __name__ == "__main__":
    main()
