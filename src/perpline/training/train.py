"""From a dataset to a candidate: labels, the walk forward, what has to be beaten, leak tests, the artefact.

Every stage leaves its result in the work folder under a key made of what went into it. Run again, a stage whose key is
the same is read back, so an interrupted training goes on where it stopped, and a finished one only writes its artefact.
The same inputs and seed give the same bytes.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import LabelRule, label_hash
from perpline.features.batch import vectors_of
from perpline.features.catalogue import SCHEMAS, Feature, columns_of, lookback_of, schema_hash
from perpline.inference import artefact
from perpline.inference.artefact import Calibrators, Head, Heads, LoadedModel, Manifest, ManifestFeature, Ood, Training
from perpline.inference.drift import psi_reference
from perpline.storage.history import SymbolHistory, symbol_history
from perpline.storage.store import TABLES, Store
from perpline.training import baselines, evaluate, leaks
from perpline.training.evaluate import Days, Scores, days_of, sides, take, trading
from perpline.training.examples import Examples, Mask, Vectors, critical_names, feature_names, join, read_dataset
from perpline.training.fit import (
    HEADS,
    PARITY_TOLERANCE,
    Predict,
    TreeParams,
    fit_both,
    importance,
    onnx_difference,
    predictor,
    to_onnx,
)
from perpline.training.labels import (
    LABEL_TABLES,
    Floats,
    Ints,
    Labels,
    independent_symbols,
    label,
    price_path,
    weights,
)
from perpline.training.leaks import FeatureRows, LeakTest
from perpline.training.report import report_html
from perpline.training.splits import DAY_MS, Fold, Windows, rows_of, walk_forward
from perpline.training.walk import (
    Fit,
    Tail,
    Walk,
    apply,
    calibrate,
    choose_threshold,
    fit_and_score,
    judge,
    score,
    trial_days,
    walk,
)

KNOWN_LAG_MS = 120_000
"""The longest wait until an input is known (features.md 1.5); part of the gap between training and test."""
KNOWN_AT = {
    "candles_1m": "open_time + 60 s",
    "mark_klines, index_klines, premium_klines": "open_time + 120 s",
    "funding_rates": "funding_time + 60 s",
    "open_interest, long_short_ratio": "period end + 120 s, or when first seen",
}
NO_MARK = (
    "no row can be labelled on the mark price: import or backfill mark price candles, or ask for --label-price last, "
    "which is written in manifest and report"
)
LIFT_WARNING = 0.10
LOCKBOX_FOLD = 99
MIN_TRADES = 30
GOLDEN_ROWS = 512
GRAPH = "model.onnx"
LOCKBOX = "lockbox_opened"
DELISTED_AFTER_MS = DAY_MS
"""A series that ends this much before most others ended with its contract."""
LABELS_FORMAT = 2
"""Of what is kept of a symbol's labels; with another one they are made anew."""

Progress = Callable[[str, int, int], None]
"""Told the stage in words, how many of its steps are done, and how many there are."""


class NoMarkPrices(NeedsPerson):
    """The rule asks for mark prices, and there are none to label with."""


class Options(Struct, frozen=True, kw_only=True):
    """What a person chose. Times in ms, [start, to) of close times."""

    name: str
    symbols: tuple[str, ...]
    start: int
    to: int
    schema: str
    rule: LabelRule
    windows: Windows
    seed: int = 1
    params: TreeParams = TreeParams()
    every: int = 10
    """One of so many rows of a symbol is trained on."""
    cuts: int = 3
    """Instants of each symbol at which the future is perturbed."""
    permutations: int = 3
    open_lockbox: bool = False
    note: str = ""


class Material(Struct):
    """What the data of a symbol were, for the bill of materials."""

    symbol: str
    first: int
    last: int
    candles: int
    expected: int
    synthetic: int
    without_mark: int
    settlements: int
    rows: int
    labelled: int
    ambiguous_share: float
    delisted: bool
    """Whether its candles end so long before most others' that its contract counts as ended."""
    funding_off: list[float]
    """How far fund_est was from each rate when it was settled, basis points per hour; empty where it is no column."""
    quote_per_minute: float
    """Median traded in a minute, quote units."""
    hours: list[int]
    """Open times and closes of whole hours, for the correlation of symbols."""
    closes: list[float]


class Outcome(Struct):
    """What a training made."""

    path: Path
    """Folder of the artefact."""
    model_id: str
    report: dict[str, Any]
    """report.json of that folder."""
    there: bool
    """Whether an earlier training of the same had made it already. What it wrote then is left as it is."""


def windows_for(rule: LabelRule, train: float, test: float, step: float, lockbox: float) -> Windows:
    """The windows with the gap that this rule needs: its horizon and the longest wait until a value is known."""
    return Windows(
        train_days=train,
        test_days=test,
        step_days=step,
        lockbox_days=lockbox,
        gap_ms=rule.horizon_s * 1000 + KNOWN_LAG_MS,
    )


def check_span(options: Options, first: int, last: int) -> None:
    """Raises NeedsPerson where the rows that candles of [first, last) (ms) can give are too few for the windows."""
    critical = [feature for feature in SCHEMAS[options.schema] if feature.critical]
    begin = max(options.start, first + lookback_of(critical) * MINUTE_MS)
    end = min(options.to, last) - options.rule.horizon_s * 1000 + MINUTE_MS
    walk_forward(begin, end, options.windows)


async def label_symbols(
    store: Store, options: Options, dataset: Path, work: Path, progress: Progress
) -> tuple[dict[str, Labels], list[Material]]:
    """Labels of every row of the dataset from what is stored, a symbol at a time.

    Raises NeedsPerson where the rule asks for mark prices and none are stored.
    """
    manifest, rows = read_dataset(dataset)
    made, materials = {}, []
    ends = sorted(int(times[-1]) for times, _ in rows.values() if len(times))
    estimate = feature_names(manifest).index("fund_est") if "fund_est" in feature_names(manifest) else None
    for number, (symbol, (times, features)) in enumerate(sorted(rows.items())):
        progress("labels", number, len(rows))
        delisted = len(times) > 0 and int(times[-1]) < ends[len(ends) // 2] - DELISTED_AFTER_MS
        stored = [await _count(store, table, symbol, options) for table in LABEL_TABLES]
        asked = (symbol, label_hash(options.rule), options.start, options.to, delisted, stored)
        key = _key(LABELS_FORMAT, manifest["dataset_hash"], *asked)
        file = work / f"{symbol}.labels.npz"
        known = _load(file, key)
        if known is None:
            history = await symbol_history(store, symbol, options.start, options.to, tables=LABEL_TABLES)
            labels, material = _label_symbol(history, np.asarray(times), options, delisted)
            if estimate is not None:
                material.funding_off = funding_off(history, np.asarray(times), np.asarray(features[:, estimate]))
            known = {**structs.asdict(labels), "material": _bytes(msgspec.json.encode(material))}
            _save(file, key, known)
        materials.append(msgspec.json.decode(known.pop("material").tobytes(), type=Material))
        made[symbol] = Labels(**known)
    progress("labels", len(rows), len(rows))
    if options.rule.price == "mark" and not any(labels.known.any() for labels in made.values()):
        raise NoMarkPrices(NO_MARK)
    return made, materials


def row_weights(examples: Examples) -> Floats:
    """What each row weighs, [n, 2] (long, short), seen from a minute after the last one."""
    now = int(examples.times.max()) + MINUTE_MS
    return np.stack([weights(examples.times, examples.unique[:, side], now) for side in (0, 1)], axis=1)


async def check_mark(store: Store, options: Options) -> None:
    """Raises NoMarkPrices where the rule asks for mark prices and none are stored."""
    if options.rule.price == "mark":
        for symbol in options.symbols:
            if await _count(store, "mark_klines", symbol, options):
                return
        raise NoMarkPrices(NO_MARK)


async def _count(store: Store, table: str, symbol: str, options: Options) -> int:
    """Rows of a table that labels are made of. They are added to and never changed, so that their number says whether
    the labels that are kept are of the same."""
    time = TABLES[table].time
    name = symbol.replace("'", "''")
    where = f"symbol = '{name}' AND {time} >= {options.start} AND {time} < {options.to}"
    [[count]] = await store.select(f"SELECT count(*) FROM {table} WHERE {where}")
    return int(count)


def funding_off(history: SymbolHistory, times: Ints, estimates: Vectors) -> list[float]:
    """Distance of the last estimate before each settlement from the rate that was settled, basis points per hour.

    `estimates` f4[n] is the column fund_est at `times` (ms). Its formula weighs a premium a minute where the exchange
    weighs one every five seconds, so the two differ a little (features.md 7).
    """
    settled, rate, hours = (history.funding[name] for name in ("funding_time", "rate", "interval_hours"))
    at = settled // MINUTE_MS * MINUTE_MS  # known a minute later: until then the column is about this settlement
    place = np.minimum(np.searchsorted(times, at), max(0, len(times) - 1))
    there = (times[place] == at) & (hours > 0) if len(times) else np.zeros(len(at), np.bool_)
    off = np.abs(estimates[place[there]].astype(np.float64) - rate[there] / hours[there] * 1e4)
    return [round(each, 4) for each in off[np.isfinite(off)].tolist()]


def _label_symbol(history: SymbolHistory, times: Ints, options: Options, delisted: bool) -> tuple[Labels, Material]:
    candles = history.candles
    opened = candles["open_time"]
    last = int(opened[-1]) if len(opened) else 0
    labels = label(price_path(history, options.rule, delisted=delisted), times, options.rule)
    quote = candles["quote_volume"]
    if not np.isfinite(quote).any():
        quote = candles["volume"] * candles["close"]
    whole = opened % 3_600_000 == 0
    expected = (last - int(opened[0])) // 60_000 + 1 if len(opened) else 0
    return labels, Material(
        symbol=history.symbol,
        first=int(opened[0]) if len(opened) else 0,
        last=last,
        candles=len(opened),
        expected=expected,
        synthetic=int(candles["synthetic"].sum()),
        without_mark=expected - len(np.intersect1d(history.mark["open_time"], opened, assume_unique=True)),
        settlements=len(history.funding["rate"]),
        rows=len(times),
        labelled=int(labels.known.sum()),
        ambiguous_share=labels.ambiguous_share,
        delisted=delisted,
        funding_off=[],
        quote_per_minute=float(np.nanmedian(quote)) if np.isfinite(quote).any() else 0.0,
        hours=opened[whole].tolist(),
        closes=candles["close"][whole].tolist(),
    )


def kernel_rows(schema: str) -> FeatureRows:
    """What the kernel gives for a history, the columns of this schema."""
    columns = columns_of(SCHEMAS[schema])

    def rows(history: SymbolHistory, start: int, end: int) -> tuple[Ints, Vectors]:
        parts = list(vectors_of(history, start, end))
        if not parts:
            return np.zeros(0, np.int64), np.zeros((0, len(columns)), np.float32)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1][:, columns] for part in parts])

    return rows


async def exact_leak_tests(store: Store, options: Options, rows: FeatureRows, progress: Progress) -> list[LeakTest]:
    """L1 and L13 of the features as they are built, on stretches of the stored histories of up to five symbols."""
    features = SCHEMAS[options.schema]
    lookback = lookback_of(features)
    rng = np.random.default_rng([options.seed, 1])
    names = [feature.name for feature in features]
    tests = leaks.ExactTests(rows, names, rng, cuts=options.cuts, lookback_min=lookback)
    symbols = options.symbols[:5]
    for number, symbol in enumerate(symbols):
        progress("leak tests of the features", number, len(symbols))
        begin = options.start - lookback * MINUTE_MS
        opened = (await store.series("candles_1m", symbol, begin, options.to, ("open_time",)))["open_time"]
        for cut in tests.instants(opened):
            # A year of every table would be the most memory that a training takes, for a few days of it.
            tests.add(await symbol_history(store, symbol, *tests.stretch(cut)), cut)
    progress("leak tests of the features", len(symbols), len(symbols))
    return tests.results()


def train(
    options: Options,
    dataset: Path,
    labels: Mapping[str, Labels],
    materials: Sequence[Material],
    exact: Sequence[LeakTest],
    work: Path,
    models_dir: Path,
    progress: Progress,
    created_at: int,
    champion: LoadedModel | None = None,
    earlier: Sequence[Manifest] = (),
) -> Outcome:
    """Fit, judge, write the artefact with its report. Everything but the store: blocks for as long as it takes.

    `created_at` is ms; `champion` the model in force, if any, which is judged beside; `earlier` the models that there
    are, whose configurations were tried too, except those of this very training. Raises NeedsPerson where the data are
    too few.
    """
    manifest, rows = read_dataset(dataset)
    names = feature_names(manifest)
    features = _features(options.schema, names)
    critical = critical_names(names)
    examples = join(rows, labels, names, critical)
    independent, correlation = independent_symbols(
        [(np.array(each.hours, np.int64), np.array(each.closes)) for each in materials if len(each.hours) > 1]
    )
    share = independent / max(1, len(examples.symbols))
    first, to = int(examples.times.min()), int(examples.times.max()) + 60_000
    folds, lockbox = walk_forward(first, to, options.windows)
    whole = _with_rows(folds, examples)
    if len(whole) < 2:
        raise NeedsPerson(
            f"of {len(folds)} windows {len(whole)} have rows with a label and their critical features, and two are "
            "needed: the history has holes, see `perpline gaps`"
        )
    folds = whole
    if options.open_lockbox and not _with_rows([lockbox], examples):
        raise NeedsPerson("the lock-box has no rows to judge by: the history has a hole there")
    weight = row_weights(examples)
    recipe = _Recipe(options, examples, weight, share)

    learned = examples.digest()

    def key(*parts: object) -> str:
        fitted = msgspec.json.encode([structs.asdict(options.windows), structs.asdict(options.params), options.every])
        return _key(manifest["dataset_hash"], learned, label_hash(options.rule), fitted.decode(), options.seed, *parts)

    walks = {}
    contenders: dict[str, Fit] = {
        "model": recipe.fit,
        "logistic regression": baselines.logistic_regression(examples, weight, options.every, options.seed)[0],
        "small trees": baselines.small_trees(examples, weight, options.every, options.seed)[0],
    }
    for name, fit in contenders.items():
        steps = _counted(progress, f"walk forward: {name}", len(folds))
        walks[name] = recipe.walk(work, name, key("walk", name), folds, fit, steps)

    mine = walks["model"]
    rng = np.random.default_rng([options.seed, 2])
    progress("evaluation", 0, 4)
    days = days_of(examples.times[mine.scores.rows], options.rule, rng)
    trials = trial_days(examples, mine.scores, days, options.rule)
    params = structs.asdict(options.params) | {"one_row_of": options.every, "windows": structs.asdict(options.windows)}
    tried = trials.shape[1] + sum(
        each.trials
        for each in earlier
        # Run again, or with the lock-box opened, a training tries nothing new.
        if (each.dataset_hash, each.label_hash, each.seed, {**each.params, LOCKBOX: None})
        != (manifest["dataset_hash"], label_hash(options.rule), options.seed, {**params, LOCKBOX: None})
    )
    if options.open_lockbox:
        params[LOCKBOX] = True  # a report of its own, which one without the lock-box does not stand in for
    ratios = _ratios(trials)
    trades = take(examples, mine.scores.rows, sides(mine.scores.p, mine.scores.threshold))
    ranked = take(examples, mine.scores.rows, sides(mine.scores.raw, mine.scores.top))
    result = trading(examples, trades, days, ratios, tried)
    as_ranked = trading(examples, ranked, days, ratios, tried)
    progress("evaluation", 1, 4)
    skill = evaluate.skill(examples, mine.scores, days, rng)
    progress("evaluation", 2, 4)
    beside = _baselines(examples, walks, mine.scores, days, options, champion)
    random = baselines.random_entries(examples, mine.scores.rows, trades if len(trades) else ranked, rng)
    progress("evaluation", 3, 4)
    opened = None
    if options.open_lockbox:
        opened = _lockbox(recipe, mine.tail, lockbox, rng)

    progress("leak tests of the training", 0, 3)
    suite = [*exact, leaks.purge_test(examples, [*folds, lockbox])]
    progress("leak tests of the training", 1, 3)
    suite.append(
        leaks.permuted_labels_test(
            examples,
            folds[-1],
            lambda dealt: baselines.small_trees(dealt, _ones(dealt), options.every, options.seed)[0],
            np.random.default_rng([options.seed, 3]),
            options.permutations,
        )
    )
    progress("leak tests of the training", 2, 3)
    suite.append(leaks.shift_test(examples, mine.scores))
    progress("leak tests of the training", 3, 3)

    progress("final fit", 0, 3)
    everything = np.ones(len(examples), np.bool_)
    texts = recipe.cached_texts(work / "final.npz", key("final"), everything, len(folds))
    progress("final fit", 1, 3)
    calibrators = calibrate(examples, mine.tail, to, share)
    threshold, how = choose_threshold(examples, mine.tail, calibrators, to, options.rule, share)
    onnx = to_onnx(texts, len(names))
    fitted_rows = examples.thinned(everything, options.every, np.random.default_rng([options.seed, len(folds)]))
    vectors = examples.features(fitted_rows)
    golden = golden_rows(vectors, np.random.default_rng([options.seed, 4]))
    parity = onnx_difference(texts, onnx, golden)
    if parity > PARITY_TOLERANCE:
        raise NeedsPerson(f"ONNX Runtime differs from LightGBM by {parity:.1e}, more than {PARITY_TOLERANCE:.0e}")
    progress("final fit", 2, 3)

    n_eff = float(examples.unique.mean(axis=1).sum()) * share
    verdict = judge_verdict(result, as_ranked, beside, suite)
    report: dict[str, Any] = {
        "format": 1,
        "name": options.name,
        "verdict": verdict,
        "note": options.note,
        "options": msgspec.json.decode(msgspec.json.encode(options)),
        "data": {
            "dataset_hash": manifest["dataset_hash"],
            "schema": options.schema,
            "features": len(names),
            "from": first,
            "to": to,
            "symbols": [_bill(each, options) for each in materials],
            "funding_estimate": _funding_estimate(materials),
            "breaks": [list(each) for each in evaluate.BREAKS if first < each[0] < to],
            "rows": len(examples),
            "thin_cross_section": examples.thin,
            "trained_rows": int(fitted_rows.sum()),
            "mean_uniqueness": float(examples.unique.mean()),
            "n_eff": n_eff,
            "independent_symbols": independent,
            "correlation": correlation,
        },
        "label": {
            "price": options.rule.price,
            "outcomes": evaluate.reasons(examples.reason),
            "random": options.rule.random,
            "break_even": options.rule.break_even,
            "lift_needed": options.rule.lift_needed,
            "lift_table": lift_table(options.rule),
        },
        "folds": [structs.asdict(each) for each in folds],
        "lockbox": {**structs.asdict(lockbox), "opened": opened},
        "threshold": {"value": threshold, "how": how},
        "skill": skill,
        "trading": result,
        "ranked": as_ranked,
        "random_entries": random,
        "baselines": beside,
        "trials": tried,
        "overfitting": evaluate.overfitting(trials),
        "eras": evaluate.eras(examples, mine.scores, trades if len(trades) else ranked),
        "between_breaks": evaluate.between_breaks(examples, mine.scores, trades if len(trades) else ranked),
        "exposure": evaluate.exposure(examples, mine.scores, rng),
        "importance": _importance(texts, names),
        "leaks": [structs.asdict(each) for each in suite],
        "onnx_difference": parity,
    }
    calibrated = apply(calibrators, score(examples, np.flatnonzero(fitted_rows), predictor(texts)))
    low, high = bounds(vectors)
    psi = psi_reference(
        vectors, calibrated, examples.times[fitted_rows] // DAY_MS, calibrated.max(axis=1) >= threshold, options.seed
    )
    written = Manifest(
        name=options.name,
        created_at=created_at,
        schema=options.schema,
        schema_hash=schema_hash(features),
        features=[ManifestFeature.of(feature) for feature in features],
        critical=list(critical),
        heads=Heads(*(Head(GRAPH, output, 1) for output in HEADS)),
        calibrators=Calibrators(*(artefact.Calibrator(each.x, each.y) for each in calibrators)),
        label=options.rule,
        label_hash=label_hash(options.rule),
        threshold=threshold,
        train=Training(start=first, to=to, symbols=list(examples.symbols), rows=len(examples), n_eff=n_eff),
        dataset_hash=manifest["dataset_hash"],
        seed=options.seed,
        params=params,
        trials=trials.shape[1],
        libraries=_libraries(),
        known_at=KNOWN_AT,
        ood=Ood(low, high),
        parent=champion.model_id if champion else None,
        note=options.note,
    )
    files = {
        GRAPH: onnx,
        "model_long.txt": texts[0].encode(),
        "model_short.txt": texts[1].encode(),
        "psi.json": msgspec.json.encode(psi),
        "report.json": json.dumps(report, indent=1, allow_nan=False).encode(),
        "report.html": report_html(report).encode(),
    }
    path = artefact.write_artefact(models_dir, written, files, golden)
    progress("final fit", 3, 3)
    there = artefact.read_manifest(path).created_at != created_at
    return Outcome(path, path.name, _report_of(path) if there else report, there)


class _Recipe:
    """The model's way of fitting, with the rows and weights it fits to."""

    def __init__(self, options: Options, examples: Examples, weight: Floats, share: float) -> None:
        self.options = options
        self.examples = examples
        self.weight = weight
        self.share = share

    def fit(self, train: Mask, fold: int) -> Predict:
        return predictor(self.texts(train, fold))

    def texts(self, train: Mask, fold: int) -> tuple[str, str]:
        rows = self.examples.thinned(train, self.options.every, np.random.default_rng([self.options.seed, fold]))
        return fit_both(self.examples, rows, self.weight, self.options.params, self.options.seed + 100 * fold)

    def walk(
        self, work: Path, name: str, key: str, folds: Sequence[Fold], fit: Fit, advance: Callable[[], None]
    ) -> Walk:
        """The walk forward of `name`, each fold's scores kept in `work`."""

        def kept(number: int, made: Callable[[], Tail]) -> Tail:
            file, fold_key = work / f"{name}.fold{number}.npz", _key(key, structs.asdict(folds[number]))
            known = _load(file, fold_key)
            if known is None:
                known = structs.asdict(made())
                _save(file, fold_key, known)
            return Tail(**known)

        return walk(self.examples, folds, fit, self.options.rule, self.share, advance, kept)

    def cached_texts(self, file: Path, key: str, train: Mask, fold: int) -> tuple[str, str]:
        known = _load(file, key)
        if known is None:
            long, short = self.texts(train, fold)
            known = {"long": _bytes(long.encode()), "short": _bytes(short.encode())}
            _save(file, key, known)
        return known["long"].tobytes().decode(), known["short"].tobytes().decode()


def _with_rows(folds: Sequence[Fold], examples: Examples) -> list[Fold]:
    """Those with rows to train on and rows to test: a long hole in all symbols leaves none of a window."""
    return [fold for fold in folds if all(rows.any() for rows in rows_of(fold, examples.times, examples.ends))]


def _features(schema: str, names: tuple[str, ...]) -> tuple[Feature, ...]:
    features = SCHEMAS[schema]
    if tuple(feature.name for feature in features) != names:
        raise NeedsPerson(f"the dataset's columns are not those of the schema {schema}: build it again")
    return features


def _baselines(
    examples: Examples,
    walks: Mapping[str, Walk],
    mine: Scores,
    days: Days,
    options: Options,
    champion: LoadedModel | None,
) -> dict[str, dict[str, Any]]:
    """Trading results of everything the model has to beat, on the rows it is judged on."""
    made = {}
    for name, side in baselines.simple(examples, mine.rows, int(examples.times[mine.rows].min())).items():
        made[name] = trading(examples, take(examples, mine.rows, side), days)
    for name, each in walks.items():
        if name != "model":
            scores = each.scores
            made[name] = trading(examples, take(examples, scores.rows, sides(scores.p, scores.threshold)), days)
            ranked = take(examples, scores.rows, sides(scores.raw, scores.top))
            made[f"{name}, top 1 %"] = trading(examples, ranked, days)
    if champion is not None and all(feature.name in examples.names for feature in champion.features):
        at = [examples.names.index(feature.name) for feature in champion.features]
        fresh = mine.rows[examples.times[mine.rows] >= champion.manifest.train.to]
        if len(fresh):
            _, p = champion.predict(examples.features(fresh)[:, at])
            side = sides(np.nan_to_num(p), np.full(len(fresh), champion.threshold))
            made[f"champion {champion.model_id}"] = trading(examples, take(examples, fresh, side), days)
    return made


def _lockbox(recipe: _Recipe, tail: Tail, lockbox: Fold, rng: np.random.Generator) -> dict[str, Any]:
    """The same recipe fitted to what lies before the lock-box, judged in it: once for each release."""
    examples, rule = recipe.examples, recipe.options.rule
    last = fit_and_score(examples, lockbox, recipe.fit, LOCKBOX_FOLD)
    scores = judge(examples, tail, last, lockbox.test_from, rule, recipe.share, LOCKBOX_FOLD)
    days = days_of(examples.times[scores.rows], rule, rng)
    trades = take(examples, scores.rows, sides(scores.p, scores.threshold))
    return {
        "skill": evaluate.skill(examples, scores, days, rng),
        "trading": trading(examples, trades, days),
        "ranked": trading(examples, take(examples, scores.rows, sides(scores.raw, scores.top)), days),
    }


def judge_verdict(
    result: Mapping[str, Any],
    ranked: Mapping[str, Any],
    beside: Mapping[str, Mapping[str, Any]],
    suite: Sequence[LeakTest],
) -> dict[str, Any]:
    """Whether the model beats always-flat and logistic regression after costs and passes every leak test; in words.

    To beat always-flat, the interval of what it earns a day must lie above zero, on at least `MIN_TRADES` trades; to
    beat logistic regression, it must earn more a day.
    """
    logistic = beside["logistic regression"]["net_bp_per_day"]["value"]
    net, low = result["net_bp_per_day"]["value"], result["net_bp_per_day"]["low"]
    trades = result["trades"]
    beats_flat = trades >= MIN_TRADES and low is not None and low > 0
    beats_logistic = net > logistic
    failed = [test.id for test in suite if not test.passed]
    said = []
    if beats_flat:
        said.append(f"It earns {net:+.1f} bp a day after costs (95 %: from {low:+.1f}), more than doing nothing.")
    elif trades == 0:
        forced = ranked["net_bp_per_trade"]["value"]
        said.append("It finds nothing worth its costs and does not trade, so it does not beat always-flat.")
        if forced is not None:
            said.append(f"Forced to trade its best 1 % of rows it would earn {forced:+.1f} bp a trade.")
    else:
        few = f" Its {trades} trades are too few to say." if trades < MIN_TRADES else ""
        bounds = f"(95 %: from {low:+.1f})" if low is not None else ""
        said.append(f"It does not beat always-flat: {net:+.1f} bp a day after costs {bounds}.{few}")
    beats = "beats" if beats_logistic else "does not beat"
    said.append(f"It {beats} logistic regression, whose result is {logistic:+.1f} bp a day.")
    if failed:
        said.append(f"Leak tests failed: {', '.join(failed)}. Nothing else in this report can be believed.")
    return {
        "beats_baselines": beats_flat and beats_logistic and not failed,
        "beats_always_flat": beats_flat,
        "beats_logistic_regression": beats_logistic,
        "leaks_failed": failed,
        "text": " ".join(said),
    }


def lift_table(rule: LabelRule) -> list[dict[str, Any]]:
    """The table of features.md 2.2 with the chosen rule last: break-even at round-trip costs, and the lift needed."""
    rules = [(0.3, 0.3), (0.5, 0.5), (1.0, 1.0), (1.0, 0.5), (2.0, 1.0)]
    rows = [structs.replace(rule, tp_pct=tp, sl_pct=sl, cost_bp=14.0) for tp, sl in rules]
    return [
        {
            "tp_pct": each.tp_pct,
            "sl_pct": each.sl_pct,
            "cost_bp": each.cost_bp,
            "random": each.random,
            "break_even": each.break_even,
            "lift_needed": each.lift_needed,
            "chosen": each is rule,
        }
        for each in [*rows, rule]
    ]


def lift_warning(rule: LabelRule) -> str:
    """One line where the rule asks for more than ten points above chance, else empty."""
    if rule.lift_needed <= LIFT_WARNING:
        return ""
    return (
        f"target {rule.tp_pct} % and stop {rule.sl_pct} % at {rule.cost_bp} bp need {rule.lift_needed * 100:.0f} "
        f"points more than chance ({rule.break_even:.0%} instead of {rule.random:.0%}), which nobody has: "
        "take levels of 1 % and more"
    )


def golden_rows(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Rows to prove a model with: usual ones, with missing values, all missing, zeros, and the extremes of training."""
    usual = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), GOLDEN_ROWS - 6), replace=False))].copy()
    holes = rng.random(usual.shape) < 0.1
    usual[::4][holes[::4]] = np.nan
    low, high = np.fmin.reduce(vectors), np.fmax.reduce(vectors)
    extremes = [np.full(vectors.shape[1], np.nan, np.float32), np.zeros(vectors.shape[1], np.float32)]
    return np.concatenate([usual, np.stack([*extremes, low, high, low * 10, high * 10])]).astype(np.float32)


def bounds(vectors: Vectors) -> tuple[list[float | None], list[float | None]]:
    """0.1 % and 99.9 % of each column in training, None where it never had a value."""
    low: list[float | None] = []
    high: list[float | None] = []
    for column in vectors.T:
        there = column[np.isfinite(column)].astype(np.float64)
        below, above = np.percentile(there, (0.1, 99.9)).tolist() if len(there) else (None, None)
        low.append(below)
        high.append(above)
    return low, high


def _bill(material: Material, options: Options) -> dict[str, Any]:
    values = structs.asdict(material)
    del values["hours"], values["closes"], values["funding_off"]
    values["coverage"] = material.candles / max(1, (options.to - options.start) // MINUTE_MS)
    values["holes"] = material.expected - material.candles
    values["synthetic_share"] = material.synthetic / max(1, material.candles)
    values["capacity_quote"] = material.quote_per_minute / 100
    return values


def _report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((path / artefact.REPORT).read_text(encoding="utf-8"))
    return report


def _funding_estimate(materials: Sequence[Material]) -> dict[str, Any] | None:
    """How far fund_est was from the rates, basis points per hour; None where nothing can be compared."""
    off = [each for material in materials for each in material.funding_off]
    if not off:
        return None
    median, most = np.quantile(off, (0.5, 0.99)).tolist()
    return {"settlements": len(off), "median": median, "most": most}


def _importance(texts: tuple[str, str], names: Sequence[str]) -> list[dict[str, Any]]:
    long, short = (importance(text) for text in texts)
    rows = [{"feature": name, "long": a, "short": b} for name, a, b in zip(names, long, short, strict=True)]
    return sorted(rows, key=lambda row: -(float(row["long"]) + float(row["short"])))


def _ratios(trials: Floats) -> list[float]:
    return [float(each.mean() / each.std()) for each in trials.T if each.std() > 1e-12]


def _ones(examples: Examples) -> Floats:
    return np.ones((len(examples), 2))


def _counted(progress: Progress, stage: str, total: int) -> Callable[[], None]:
    done = 0
    progress(stage, 0, total)

    def advance() -> None:
        nonlocal done
        done += 1
        progress(stage, done, total)

    return advance


def _libraries() -> dict[str, str]:
    found = {}
    for name in ("lightgbm", "numpy", "numba", "onnxmltools", "onnxruntime", "perpline"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found


def _key(*parts: object) -> str:
    return blake2b(json.dumps([str(part) for part in parts]).encode(), digest_size=16).hexdigest()


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _save(file: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Written beside and moved into place: a file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part.npz")
    np.savez(partial, __key=np.array(key), **arrays)  # type: ignore[arg-type]
    os.replace(partial, file)


def _load(file: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of a stage that was done with this key, else None."""
    try:
        with np.load(file) as stored:
            if str(stored["__key"]) != key:
                return None
            return {name: stored[name] for name in stored.files if name != "__key"}
    except (OSError, ValueError, KeyError):  # not there, or not whole: the stage is done again
        return None
