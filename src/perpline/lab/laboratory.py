"""The database as a person at a notebook asks it: synchronous, also where an event loop runs already."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from msgspec import structs

from perpline.bootstrap import open_store
from perpline.collector.bulk import stored_span, stored_symbols
from perpline.common.config import Settings, load_settings, masked_url
from perpline.common.errors import NeedsPerson, PerplineError
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import REASONS, LabelRule
from perpline.domain.order import Account
from perpline.features.catalogue import SCHEMAS, by_name
from perpline.inference.registry import find_manifest
from perpline.lab import frames
from perpline.lab.frames import EARLIEST, LATEST, As, Frame, Moment, from_columns, from_rows, milliseconds
from perpline.lab.served import Served, served_vector
from perpline.storage.store import TABLES, TRADING_TABLES, Store
from perpline.training.dataset import build_dataset
from perpline.training.examples import Examples, critical_names, feature_names, join, read_dataset
from perpline.training.labels import SIDES
from perpline.training.outcomes import stored_labels
from perpline.training.train import NoMarkPrices, Options, check_mark, label_symbols, row_weights, windows_for

Symbols = str | Sequence[str] | None
"""One, several, or all that there are."""
DEFAULT_LABEL = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=14_400, cost_bp=14.0)
"""That of `perpline train` without options."""

T = TypeVar("T")


class Lab:
    """One database and settings file. Nothing stays open between two calls: no file, connection, thread or loop.

    Every method raises NeedsPerson for what cannot be asked so, and Unavailable where the database is away; the text
    says what to do.
    """

    def __init__(self, database: str | Path | None = None, config: str | Path | None = None) -> None:
        """`database` is a URL or the path of a SQLite file; what is not given is as for every command."""
        if database is not None and "://" not in str(database):
            database = f"sqlite:///{Path(database).expanduser().absolute()}"
        overrides: dict[str, object] = {"database_url": database}
        self._settings = load_settings(None if config is None else Path(config), os.environ, overrides)
        self._ask(_nothing)

    def __repr__(self) -> str:
        return f"Lab({masked_url(self._url)!r})"

    @property
    def settings(self) -> Settings:
        return self._settings

    def candles(
        self,
        symbol: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        interval: str = "1m",
        as_: As = "polars",
    ) -> Frame:
        """The stored candles that open in the span, oldest first; `interval` is 1m, 15m or 1h.

        None where a hole is. Raises NeedsPerson for a symbol of which there are none at all.
        """
        if interval not in ("1m", "15m", "1h"):
            raise NeedsPerson(f"candles are stored of 1m, 15m and 1h, not of {interval!r}")
        [name] = _names([symbol])
        first, last = _span(start, end)
        table = TABLES[f"candles_{interval}"]
        asked = [column for column in frames.CANDLES if column != "symbol"]
        rows = self._ask(lambda store: _series(store, table.name, name, first, last, asked))
        count = len(rows["open_time"])
        columns: dict[str, Any] = {"symbol": [name] * count, **rows}
        columns["trades"] = [None if trades < 0 else trades for trades in rows["trades"].tolist()]
        return from_columns(columns, frames.CANDLES, as_)

    def features(self, symbol: str, t: Moment, *, slot: str | None = None, as_: As = "polars") -> Served:
        """The very vector that the decision of the minute that closed at `t` was made of, with where it comes from.

        Raises NeedsPerson where that minute was not decided, or decided without asking the model.
        """
        close_time = milliseconds(t, EARLIEST)
        if close_time % MINUTE_MS:
            raise NeedsPerson(f"{t} is no close: minutes close at :00")
        [name] = _names([symbol])
        slot, ours = self._slot(slot), self._settings.slot
        return self._ask(
            lambda store: served_vector(store, self._settings.models_dir, name, close_time, slot, ours, as_)
        )

    def frame(
        self,
        symbols: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        features: str | Sequence[str] = "candles",
        label: LabelRule = DEFAULT_LABEL,
        as_: As = "polars",
    ) -> Frame:
        """What `perpline train` learns from, by its own code: a row for each close that has a label and all critical
        features, a symbol's rows in one run. `split` parts it into X, labels and weights.

        `features` is a schema of `perpline features list`, or names of columns: then the rows are those of the
        smallest schema that has them all. Raises NeedsPerson where no row is left.
        """
        schema, chosen = _schema(features)
        first, last = _span(start, end)
        try:
            return self._ask(
                lambda store: _training_frame(store, _names(symbols), first, last, schema, chosen, label, as_)
            )
        except NoMarkPrices:
            raise NeedsPerson(
                "no row can be labelled on the mark price: import or backfill mark price candles, or label by the last "
                f"price: label={structs.replace(label, price='last')}"
            ) from None

    def signals(
        self,
        symbols: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        slot: str | None = None,
        as_: As = "polars",
    ) -> Frame:
        """Every decision of the slot that closes in the span, of whatever status, by time and symbol; beside it both
        probabilities, and the outcome where one is stored."""
        kinds = {**frames.SIGNALS, **frames.PREDICTED, **frames.OUTCOME}
        columns = [f's."{name}"' for name in frames.SIGNALS] + [f"p.{name}" for name in frames.PREDICTED]
        columns += [f"o.{name}" for name in ("reason", "t_exit", "ret_net", "mae", "mfe")]
        query = (
            f"SELECT {', '.join(columns)} FROM signals s "
            "LEFT JOIN predictions p ON p.close_time = s.close_time AND p.symbol = s.symbol AND p.slot = s.slot "
            "LEFT JOIN signal_outcomes o ON o.signal_id = s.signal_id "
            f"WHERE {_where('s', self._slot(slot), _names(symbols), *_span(start, end))} "
            "ORDER BY s.close_time, s.symbol"
        )
        return from_rows(self._ask(lambda store: store.select(query)), kinds, as_)

    def outcomes(
        self,
        symbols: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        slot: str | None = None,
        label: LabelRule | None = None,
        as_: As = "polars",
    ) -> Frame:
        """What would have become of a long and of a short at each close that was scored in the span, beside their
        calibrated probabilities, traded or not: two rows a prediction, for `plot_calibration`.

        By the model's own label rule, or by `label`; minutes whose horizon is not over, or has holes, are left out.
        """
        where = _where("p", self._slot(slot), _names(symbols), *_span(start, end))
        return self._ask(lambda store: _outcomes(store, self._settings, where, self._slot(slot), label, as_))

    def gaps(
        self,
        symbols: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        only_open: bool = False,
        as_: As = "polars",
    ) -> Frame:
        """Holes that touch the span, repaired or not, as they were noted."""
        wanted, (first, last) = _names(symbols), _span(start, end)
        found = self._ask(lambda store: store.gaps(only_open))
        rows = [
            [getattr(gap, name) for name in frames.GAPS]
            for gap in found
            if (not wanted or gap.symbol in wanted) and gap.from_time < last and gap.to_time > first
        ]
        return from_rows(rows, frames.GAPS, as_)

    def positions(
        self,
        symbols: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        account: Account | None = None,
        as_: As = "polars",
    ) -> Frame:
        """Positions of the paper and the live account, or one of them, that were open at some time of the span."""
        wanted, (first, last) = _names(symbols), _span(start, end)
        rows = [
            row
            for row in self._trading("positions", account)
            if (not wanted or row["symbol"] in wanted)
            and row["opened_at"] < last
            and (row["closed_at"] is None or row["closed_at"] > first)
        ]
        return from_rows(([row[name] for name in frames.POSITIONS] for row in rows), frames.POSITIONS, as_)

    def equity(
        self,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        account: Account | None = None,
        as_: As = "polars",
    ) -> Frame:
        """Wallet and equity of the accounts, or one of them, minute by minute."""
        first, last = _span(start, end)
        rows = [row for row in self._trading("equity", account, first) if row["minute"] < last]
        return from_rows(([row[name] for name in frames.EQUITY] for row in rows), frames.EQUITY, as_)

    @property
    def _url(self) -> str:
        return self._settings.database_url.get_secret_value()

    def _slot(self, slot: str | None) -> str:
        slot = slot or self._settings.slot
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", slot):
            raise NeedsPerson(f"{slot!r} is no slot: champion and shadow are")
        return slot

    def _trading(self, table: str, account: Account | None, since: int | None = None) -> list[dict[str, Any]]:
        if account not in (None, "paper", "live"):
            raise NeedsPerson(f"accounts are paper and live, not {account!r}")
        only: Mapping[str, str | int | None] = {} if account is None else {"account": account}
        rows = self._ask(lambda store: store.trading_rows(table, only, since=since))
        return [TRADING_TABLES[table].named(row) for row in rows]

    def _ask(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """What the work returns, done with the store in a thread and an event loop of its own."""
        frames.polars()

        async def main() -> T:
            store = open_store(self._url, read_only=True)
            await store.open()
            try:
                return await work(store)
            finally:
                await store.close()

        return _apart(main())


def _apart(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end in a new thread: a notebook's own loop is running in this one. Ctrl-C cancels it."""
    loop = asyncio.new_event_loop()

    def run() -> T:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(work)

    with ThreadPoolExecutor(1, thread_name_prefix="perpline lab") as thread:
        try:
            return thread.submit(run).result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
            raise
        except BaseExceptionGroup as group:
            known: BaseException | None = group.subgroup(PerplineError)
            while isinstance(known, BaseExceptionGroup):
                known = known.exceptions[0]
            if known is None:
                raise
            raise known from None


async def _nothing(store: Store) -> None:
    """The store could be opened: that is all that was asked."""


async def _series(
    store: Store, table: str, symbol: str, first: int, last: int, columns: Sequence[str]
) -> dict[str, Any]:
    rows = await store.series(table, symbol, first, last, columns)
    if not len(rows["open_time"]) and await stored_span(store, symbol, table, 0, LATEST) is None:
        interval = table.removeprefix("candles_")
        raise NeedsPerson(f"the database holds no {interval} candles of {symbol}: import or backfill them")
    return dict(rows)


async def _training_frame(
    store: Store,
    symbols: list[str],
    start: int,
    end: int,
    schema: str,
    chosen: Sequence[str],
    rule: LabelRule,
    as_: As,
) -> Frame:
    there = await stored_symbols(store)
    if missing := [symbol for symbol in symbols if symbol not in there]:
        raise NeedsPerson(f"the database holds no candles of {', '.join(missing[:5])}: import or backfill them")
    names = symbols or there
    spans = [span for name in names if (span := await stored_span(store, name, "candles_1m", 0, LATEST))]
    if not spans:
        raise NeedsPerson("the database holds no candles: `perpline import candles` or `perpline backfill` first")
    # A day beyond the first or last candle only costs time.
    options = Options(
        name="lab",
        symbols=tuple(names),
        start=start or min(first for first, _ in spans),
        to=min(end, max(last for _, last in spans)) if end == LATEST else end,
        schema=schema,
        rule=rule,
        windows=windows_for(rule, 1.0, 1.0, 1.0, 0.0),
    )
    if options.start >= options.to:
        raise NeedsPerson("the span is empty: no candle of these symbols lies in it")
    await check_mark(store, options)
    with TemporaryDirectory(prefix="perpline-lab-") as name:
        folder = Path(name)
        await build_dataset(store, options.symbols, options.start, options.to, schema, folder / "dataset")
        labels, _ = await label_symbols(store, options, folder / "dataset", folder, lambda stage, done, total: None)
        manifest, rows = read_dataset(folder / "dataset")
        columns = feature_names(manifest)
        return await asyncio.to_thread(
            lambda: _examples_frame(join(rows, labels, columns, critical_names(columns)), chosen, as_)
        )


def _examples_frame(examples: Examples, chosen: Sequence[str], as_: As) -> Frame:
    features = examples.features(np.ones(len(examples), np.bool_))
    weight = row_weights(examples)
    columns: dict[str, Any] = {
        "symbol": [examples.symbols[index] for index in examples.symbol.tolist()],
        "close_time": examples.times,
    }
    columns |= {name: np.ascontiguousarray(features[:, examples.names.index(name)]) for name in chosen}
    for column, side in enumerate(("long", "short")):
        columns |= {
            f"label_won_{side}": examples.won[:, column],
            f"label_net_{side}": examples.net[:, column],
            f"label_gross_{side}": examples.gross[:, column],
            f"label_reason_{side}": [REASONS[reason] for reason in examples.reason[:, column].tolist()],
            f"label_end_{side}": examples.side_ends[:, column],
        }
    for column, side in enumerate(("long", "short")):
        columns |= {f"weight_{side}": weight[:, column], f"weight_unique_{side}": examples.unique[:, column]}
    return from_columns(columns, {"close_time": "time", **frames.LABELS, "symbol": "text"}, as_)


async def _outcomes(store: Store, settings: Settings, where: str, slot: str, rule: LabelRule | None, as_: As) -> Frame:
    scored = await store.select(
        "SELECT p.symbol, p.model_id, p.close_time, p.p_long, p.p_short FROM predictions p "
        f"WHERE {where} AND p.p_long IS NOT NULL ORDER BY p.symbol, p.model_id, p.close_time"
    )
    by_model: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for symbol, model_id, *row in scored:
        by_model.setdefault((symbol, model_id), []).append((row[0], row[1], row[2]))
    made: list[tuple[Any, ...]] = []
    for (symbol, model_id), rows in by_model.items():
        asked = rule or find_manifest(settings.models_dir, model_id).label
        labels = await stored_labels(store, symbol, [t for t, *_ in rows], asked)
        for at in np.flatnonzero(labels.known).tolist():
            for column, side in enumerate(SIDES):
                net = float(labels.net[at, column])
                made.append(
                    (
                        symbol,
                        rows[at][0],
                        slot,
                        model_id,
                        side,
                        rows[at][1 + column],
                        net > 0,
                        net,
                        float(labels.gross[at, column]),
                        REASONS[int(labels.reason[at, column])],
                        int(labels.ends[at, column]),
                        float(labels.worst[at, column]),
                        float(labels.best[at, column]),
                    )
                )
    made.sort(key=lambda row: (row[1], row[0]))
    return from_rows(made, frames.OUTCOMES, as_)


def _schema(features: str | Sequence[str]) -> tuple[str, list[str]]:
    """The schema, and which of its columns are shown."""
    if isinstance(features, str):
        if features not in SCHEMAS:
            raise NeedsPerson(f"there is no schema {features}; there are {', '.join(SCHEMAS)}")
        return features, [feature.name for feature in SCHEMAS[features]]
    chosen = list(dict.fromkeys(features))
    if not chosen:
        raise NeedsPerson("no feature is named")
    if unknown := [name for name in chosen if name not in by_name]:
        raise NeedsPerson(f"no such feature: {', '.join(unknown[:5])}; `perpline features list` has them")
    for schema in sorted(SCHEMAS, key=lambda name: len(SCHEMAS[name])):
        if set(chosen) <= {feature.name for feature in SCHEMAS[schema]}:
            return schema, chosen
    raise NeedsPerson("no single schema has all of these features; ask for them apart")


def _span(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    first, last = milliseconds(start, EARLIEST), milliseconds(end, LATEST)
    if first >= last:
        raise NeedsPerson(f"the span from {start} to {end} is empty")
    return first, last


def _names(symbols: Symbols) -> list[str]:
    """Symbols in capitals; none for all of them."""
    if symbols is None:
        return []
    names = [symbols] if isinstance(symbols, str) else list(symbols)
    if not names:
        raise NeedsPerson("no symbol is named; None means all")
    found = [name.strip().upper() for name in names]
    for name in found:
        if not re.fullmatch(r"\w{1,40}", name):
            raise NeedsPerson(f"{name!r} is no symbol")
    return list(dict.fromkeys(found))


def _where(table: str, slot: str, symbols: Sequence[str], start: int, end: int) -> str:
    """Names were checked: none can hold a quote."""
    named = ", ".join(f"'{name}'" for name in symbols)
    among = f" AND {table}.symbol IN ({named})" if symbols else ""
    return f"{table}.slot = '{slot}' AND {table}.close_time >= {start} AND {table}.close_time < {end}{among}"
