"""What Prometheus reads of a worker: one table of metrics, each read from the status. docs/reference/metrics.md is made
of it.

A metric whose facts a process does not have is not there: an inference worker hears no market, a standby polls nothing,
a collector decides nothing. No label has values that somebody outside can make more of (`LABELS`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from perpline.domain.candle import MINUTE_MS

Status = Mapping[str, Any]
Labels = tuple[str, ...]
Sample = tuple[Labels, float | int | None]
"""Values of the labels, and the value; None where it is not known: then there is no sample."""
Read = Callable[[Status], Iterable[Sample]]

LATE_MS = 3 * MINUTE_MS
"""A symbol whose last decision is older misses at least one: minutes are decided within 30 s."""
QUANTILES = (("0.5", "p50"), ("0.99", "p99"))
MODES = ("off", "paper", "live")


class Metric(Struct, frozen=True):
    """One metric. `name` as it is read, with `_total` where it is a counter."""

    name: str
    kind: Literal["gauge", "counter", "summary"]
    meaning: str
    read: Read
    labels: Labels = ()


LABELS = {
    "account": "`paper`, `live`",
    "column": "the columns of the model in force, at most some hundred",
    "connection": "the market connections: one for each 200 streams and lane; `REST` for a worker that is fed by it",
    "kind": "the kinds of messages, some ten",
    "mode": "`off`, `paper`, `live`",
    "model": "the id of the model in force, one for each slot",
    "outcome": "`routed`, `unhandled`, `malformed`, `failed`",
    "pool": "`futures_data`, `funding`",
    "priority": "`orders`, `reconcile`, `heal`, `polls`, `bulk`",
    "quantile": "`0.5`, `0.99`; of the newest values, and empty before the first",
    "reason": "why messages are left out on purpose, a few",
    "role": "`all`, `collector`, `inference`",
    "series": "the polled series, some ten",
    "shard": "the collectors, as `1/2`",
    "slot": "the slots with a model: the own one and its shadows",
    "stage": "the stages from the close to the signal, seven",
    "status": "the statuses of a decision, ten",
    "stream": "the five streams of a symbol",
    "symbol": "`all`, and the symbols that have a mode of their own",
    "table": "the tables that rows are gathered for, some fifteen",
    "version": "the version that runs, one",
}
"""Of each label, which values it can have."""

PROCESS = {
    "process_virtual_memory_bytes": "Virtual memory",
    "process_resident_memory_bytes": "Memory in use",
    "process_start_time_seconds": "When the process started, seconds since 1970",
    "process_cpu_seconds_total": "Processor time used",
    "process_open_fds": "Open files and sockets",
    "process_max_fds": "How many may be open",
}
"""What the client library tells of the process itself, on Linux."""


# ---- what a status says, for those who judge it too


def leads(status: Status) -> bool:
    """Whether this process is the one that decides."""
    leadership = status.get("leadership")
    return leadership is None or bool(leadership["leads"])


def database_trouble(status: Status) -> str:
    """Why a worker has no database; empty where it has one."""
    spool, lease = status.get("spool"), status.get("leadership") or status.get("lease")
    if spool is not None and spool["decisions"] is not None and spool["decisions"]["last_error"]:
        return f"decisions wait in the spool: {spool['decisions']['last_error']}"
    if spool is not None and spool["records"]:
        return f"{spool['records']} batches wait in the spool, the oldest for {spool['oldest_s'] or 0:,.0f} s"
    if lease is not None and lease["holds"] and not lease["leads"]:
        return "the leader cannot renew its lease"
    return ""


def undecided(status: Status) -> dict[str, int | None]:
    """The symbols that miss a decision: by symbol T of the last one, None where this process never made one.

    Of the first one a process has as long as of the next; a contract that is halted may have none.
    """
    found: dict[str, int | None] = {}
    halted = (status.get("universe") or {}).get("not_trading", ())
    for symbol, entry in status["symbols"].items():
        decision, since = entry["last_decision"], None
        if decision is not None:
            since = decision["close_time"]
        elif symbol not in halted and entry.get("expected_after") is not None:
            since = max(entry["expected_after"], status.get("started_at", status["now"]))
        if since is not None and status["now"] - since > LATE_MS:
            found[symbol] = None if decision is None else since
    return found


# ---- the text


def metrics(status: Status) -> bytes:
    """The status of a worker of any role as Prometheus text."""
    registry = CollectorRegistry()
    registry.register(_Families(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def families(status: Status) -> Iterator[Family]:
    """The metrics that this status has facts for."""
    for metric in METRICS:
        samples = [(labels, value) for labels, value in metric.read(status) if value is not None]
        if samples:
            family = Family(metric.name.removesuffix("_total"), metric.meaning, metric.kind)
            for labels, value in samples:
                family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), float(value))
            yield family


class _Families(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[Family]:
        return families(self._status)


# ---- how a value is found


def _at(*path: str, scale: float = 1.0) -> Read:
    """The number, or whether there is anything, at this place of the status."""

    def read(status: Status) -> Iterator[Sample]:
        value = _look(status, path)
        if isinstance(value, int | float):
            yield (), value * scale

    return read


def _set(*path: str) -> Read:
    """Whether there is a text at this place."""

    def read(status: Status) -> Iterator[Sample]:
        missing = object()
        value = _look(status, path, missing)
        if value is not missing:
            yield (), bool(value)

    return read


def _each(*path: str, key: str = "", scale: float = 1.0) -> Read:
    """Of each entry at this place its value, or its `key`."""

    def read(status: Status) -> Iterator[Sample]:
        for name, entry in (_look(status, path) or {}).items():
            value = entry[key] if key else entry
            yield (str(name),), None if value is None else value * scale

    return read


def _quantiles(*path: str) -> Read:
    """{"p50", "p99"} in milliseconds, as seconds."""

    def read(status: Status) -> Iterator[Sample]:
        found = _look(status, path) or {}
        for quantile, key in QUANTILES:
            yield (quantile,), _seconds(found.get(key))

    return read


def _quantiles_of_each(*path: str, key: str = "") -> Read:
    def read(status: Status) -> Iterator[Sample]:
        for name, entry in (_look(status, path) or {}).items():
            for quantile, p in QUANTILES:
                yield (name, quantile), _seconds((entry[key] if key else entry).get(p))

    return read


def _connections(key: str) -> Read:
    def read(status: Status) -> Iterator[Sample]:
        for each in status.get("connections", ()):
            value = each[key]
            yield (each["name"],), bool(value) if isinstance(value, str) else value

    return read


def _accounts(value: Callable[[dict[str, Any]], float | int | None]) -> Read:
    def read(status: Status) -> Iterator[Sample]:
        for name, each in (_look(status, ("trading", "accounts")) or {}).items():
            yield (name,), value(each)

    return read


def _look(status: Any, path: Iterable[str], otherwise: Any = None) -> Any:
    for key in path:
        if not isinstance(status, Mapping) or key not in status:
            return otherwise
        status = status[key]
    return status


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


# ---- what takes more than a look


def _build(status: Status) -> Iterator[Sample]:
    if "version" in status:
        yield (status["version"], str(status.get("role", "all")), str(status.get("slot", ""))), 1


def _ages(status: Status) -> Iterator[Sample]:
    oldest: dict[str, float] = {}
    for entry in status.get("symbols", {}).values():
        for stream, seconds in entry["ages_s"].items():
            if seconds is not None and seconds > oldest.get(stream, -1.0):
                oldest[stream] = seconds
    yield from (((stream,), seconds) for stream, seconds in oldest.items())


def _stale(status: Status) -> Iterator[Sample]:
    silent = _look(status, ("streams", "stale"))
    for each in status.get("connections", ()) if silent is not None else ():
        yield (each["name"],), len(silent.get(each["name"], ()))
    if (untold := _look(status, ("rest_feed", "stale"))) is not None:
        yield ("REST",), len(untold.get("REST", ()))


def _symbols(status: Status) -> Iterator[Sample]:
    if "symbols" in status:
        yield (), len(status["symbols"])


def _symbols_late(status: Status) -> Iterator[Sample]:
    if "symbols" not in status or not leads(status) or status.get("role") == "collector":
        return
    yield (), len(undecided(status))


def _decided_until(status: Status) -> Iterator[Sample]:
    times = [
        each["last_decision"]["close_time"] for each in status.get("symbols", {}).values() if each["last_decision"]
    ]
    if times:
        yield (), max(times) / 1000


def _counted(*path: str) -> Read:
    """How many entries there are at this place."""

    def read(status: Status) -> Iterator[Sample]:
        if (found := _look(status, path)) is not None:
            yield (), len(found)

    return read


def _database_away(status: Status) -> Iterator[Sample]:
    if status.get("spool") or status.get("leadership") or status.get("lease"):
        yield (), bool(database_trouble(status))


def _blocked(status: Status) -> Iterator[Sample]:
    if "rest" in status:
        yield (), status["rest"]["blocked_until"] > status["now"]


def _budget_processes(status: Status) -> Iterator[Sample]:
    if "rest" in status:
        yield (), status["rest"]["shared"]["processes"] if status["rest"]["shared"] else 1


def _budget_away(status: Status) -> Iterator[Sample]:
    if "rest" in status:
        yield (), bool(status["rest"]["shared"] and status["rest"]["shared"]["away"])


def _in_force(status: Status) -> dict[str, dict[str, Any]]:
    models = status.get("models") or {}
    champion = {status["slot"]: models["champion"]} if models.get("champion") else {}
    return {**champion, **models.get("shadows", {})}


def _model_info(status: Status) -> Iterator[Sample]:
    for slot, entry in _in_force(status).items():
        yield (slot, entry["model_id"] or ""), 1


def _refused(status: Status) -> Iterator[Sample]:
    refused = _look(status, ("models", "refused")) or {}
    for slot in {**_in_force(status), **refused}:
        yield (slot,), slot in refused


def _today(key: str) -> Read:
    """Of today's drift by column, or one number."""

    def read(status: Status) -> Iterator[Sample]:
        found = _look(status, ("models", "drift", "today", key))
        if isinstance(found, Mapping):
            yield from (((column,), value) for column, value in found.items())
        else:
            yield (), found

    return read


def _judged(value: Callable[[dict[str, Any]], float]) -> Read:
    """Of the newest day that is long enough to be judged."""

    def read(status: Status) -> Iterator[Sample]:
        drift = _look(status, ("models", "drift")) or {}
        for day in (drift.get("today"), drift.get("yesterday")):
            if day is not None and day["judged"]:
                yield (), value(day)
                return

    return read


def _modes(status: Status) -> Iterator[Sample]:
    trading = status.get("trading")
    if trading is None:
        return
    for symbol, in_force in ({"": "off"} | {row["symbol"]: row["mode"] for row in trading["modes"]}).items():
        for mode in MODES:
            yield (symbol or "all", mode), mode == in_force


def _daily_loss(each: dict[str, Any]) -> float | None:
    begun, now = each["day_equity"], each["equity"]
    return None if not begun or now is None else (begun - now) / begun


def _unattended(status: Status) -> Iterator[Sample]:
    if (found := _look(status, ("trading", "live_unattended"))) is not None:
        yield (), len(found)


def _unprotected(each: dict[str, Any]) -> int:
    return sum(not row["protected"] for row in each["positions"])


def _ended_well(*path: str) -> Read:
    def read(status: Status) -> Iterator[Sample]:
        if (found := _look(status, path)) is not None:
            yield (), "error" not in found

    return read


def _parity_ok(status: Status) -> Iterator[Sample]:
    if (found := status.get("parity")) is not None:
        yield (), found.get("ok", False)


def _messages(status: Status) -> Iterator[Sample]:
    if "messages" in status:
        yield from (((name,), status["messages"][name]) for name in ("routed", "unhandled", "malformed", "failed"))


def _unknown_fields(status: Status) -> Iterator[Sample]:
    if "messages" in status:
        yield (), sum(status["messages"]["unknown_fields"].values())


def _published_at(status: Status) -> Iterator[Sample]:
    yield (), _seconds(_look(status, ("outbox", "last_published_ms")))


# ---- the table

GROUPS: dict[str, tuple[Metric, ...]] = {
    "The process": (
        Metric("perpline_build_info", "gauge", "1, for what runs", _build, ("version", "role", "slot")),
        Metric("perpline_ready", "gauge", "Whether everything it needs has been heard once", _at("ready")),
        Metric(
            "perpline_clock_offset_seconds",
            "gauge",
            "How far the exchange's clock is ahead of ours",
            _at("clock_offset_ms", scale=1e-3),
        ),
        Metric(
            "perpline_clock_speed_ratio",
            "gauge",
            "How fast the market's time runs; 1 but for simulated ones",
            _at("speed"),
        ),
    ),
    "Who leads": (
        Metric(
            "perpline_leads", "gauge", "Whether this process leads, and does not stand by", _at("leadership", "leads")
        ),
        Metric(
            "perpline_fencing_number",
            "gauge",
            "Number of the lease that it leads under; not there while it does not",
            _at("leadership", "fencing"),
        ),
        Metric("perpline_terms_total", "counter", "How often it has begun to lead", _at("leadership", "terms")),
        Metric(
            "perpline_lease_renewed_age_seconds",
            "gauge",
            "Since when the lease was renewed, while it holds it",
            _at("leadership", "renewed_s"),
        ),
    ),
    "Messages of the market": (
        Metric("perpline_messages_total", "counter", "Messages received, by outcome", _messages, ("outcome",)),
        Metric(
            "perpline_stream_messages_total",
            "counter",
            "Messages decoded, by kind",
            _each("messages", "by_kind"),
            ("kind",),
        ),
        Metric(
            "perpline_messages_superseded_total",
            "counter",
            "Messages that a newer one replaced before anybody read them",
            _at("messages", "superseded"),
        ),
        Metric(
            "perpline_messages_dropped_total",
            "counter",
            "Messages left out on purpose",
            _each("messages", "dropped"),
            ("reason",),
        ),
        Metric(
            "perpline_repeats_total",
            "counter",
            "Messages dropped that had come before, as with two lanes each has",
            _each("messages", "repeats"),
            ("kind",),
        ),
        Metric("perpline_unknown_fields_total", "counter", "Unknown fields seen; /status names them", _unknown_fields),
    ),
    "Connections and streams": (
        Metric("perpline_connection_live", "gauge", "Whether data comes on it", _connections("live"), ("connection",)),
        Metric(
            "perpline_connection_delivers_nothing",
            "gauge",
            "Whether it is open and has delivered no data by its deadline",
            _connections("delivers_nothing"),
            ("connection",),
        ),
        Metric(
            "perpline_connection_age_seconds",
            "gauge",
            "Market seconds since it was opened",
            _connections("age_s"),
            ("connection",),
        ),
        Metric(
            "perpline_connection_quiet_seconds",
            "gauge",
            "Seconds since any data came on it",
            _connections("quiet_s"),
            ("connection",),
        ),
        Metric(
            "perpline_connection_streams", "gauge", "Streams that it carries", _connections("streams"), ("connection",)
        ),
        Metric(
            "perpline_connection_silent_streams",
            "gauge",
            "Streams that have delivered nothing on it yet",
            _connections("silent_count"),
            ("connection",),
        ),
        Metric(
            "perpline_connection_messages_total", "counter", "Messages on it", _connections("messages"), ("connection",)
        ),
        Metric(
            "perpline_connection_losses_total", "counter", "Times it was lost", _connections("losses"), ("connection",)
        ),
        Metric("perpline_lanes", "gauge", "Connections that carry the same streams", _at("streams", "lanes")),
        Metric("perpline_streams_stale", "gauge", "Streams that should speak and are silent", _stale, ("connection",)),
        Metric(
            "perpline_rollovers_total", "counter", "Connections replaced without a gap", _at("streams", "rollovers")
        ),
        Metric(
            "perpline_rollovers_given_up_total",
            "counter",
            "New connections that did not prove themselves beside the old one",
            _at("streams", "rollovers_given_up"),
        ),
        Metric(
            "perpline_resubscriptions_total", "counter", "Streams asked for again", _at("streams", "resubscriptions")
        ),
        Metric(
            "perpline_stale_renewals_total",
            "counter",
            "Connections renewed because a stream stayed silent",
            _at("streams", "stale_renewals"),
        ),
        Metric(
            "perpline_stale_healed_total", "counter", "Stale streams that spoke again", _at("streams", "stale_healed")
        ),
        Metric(
            "perpline_stream_age_seconds",
            "gauge",
            "Seconds since a stream was heard, of the symbol that was heard longest ago; /status has each",
            _ages,
            ("stream",),
        ),
    ),
    "Symbols": (
        Metric(
            "perpline_symbols", "gauge", "Symbols that are decided on, or will be as soon as they are loaded", _symbols
        ),
        Metric("perpline_symbols_joining", "gauge", "Of these, symbols being loaded", _counted("universe", "joining")),
        Metric(
            "perpline_symbols_leaving",
            "gauge",
            "Symbols decided on no more whose positions are still open",
            _counted("universe", "leaving"),
        ),
        Metric("perpline_symbols_halted", "gauge", "Symbols that do not trade", _counted("universe", "not_trading")),
        Metric(
            "perpline_symbols_listed_timestamp_seconds",
            "gauge",
            "When the exchange's list was last read, market time",
            _at("universe", "listed_at", scale=1e-3),
        ),
    ),
    "Candles": (
        Metric("perpline_candles_closed_total", "counter", "Closed candles delivered", _at("candles", "closed")),
        Metric(
            "perpline_candles_late_closes_total",
            "counter",
            "Closes asked of REST because no frame came in time",
            _at("candles", "late_closes"),
        ),
        Metric(
            "perpline_candles_repeats_total",
            "counter",
            "Closed candles that had come before",
            _at("candles", "repeats"),
        ),
        Metric(
            "perpline_candles_revisions_total",
            "counter",
            "Fields in which a repeated candle differed",
            _at("candles", "revisions"),
        ),
        Metric(
            "perpline_candles_synthetic_total",
            "counter",
            "Candles made for minutes that the exchange does not have",
            _at("candles", "synthetic"),
        ),
        Metric("perpline_candles_gaps_noted_total", "counter", "Holes in candles noted", _at("candles", "gaps_noted")),
        Metric(
            "perpline_candles_gaps_open",
            "gauge",
            "Holes in candles that are being repaired, or wait for it",
            _at("candles", "gaps_open"),
        ),
    ),
    "Decisions": (
        Metric(
            "perpline_decisions_total",
            "counter",
            "Decisions stored, by status",
            _each("decisions", "by_status"),
            ("status",),
        ),
        Metric(
            "perpline_decision_batches_total",
            "counter",
            "Batches of symbols decided together",
            _at("decisions", "batches"),
        ),
        Metric(
            "perpline_decided_timestamp_seconds", "gauge", "The newest T that was decided, market time", _decided_until
        ),
        Metric(
            "perpline_symbols_late",
            "gauge",
            "Symbols whose last decision is more than three minutes old, or never came, of the process that leads",
            _symbols_late,
        ),
        Metric(
            "perpline_close_to_signal_seconds",
            "summary",
            "From the receipt of a batch's last closing frame to its signals on the bus",
            _quantiles("decisions", "close_to_signal_ms"),
            ("quantile",),
        ),
        Metric(
            "perpline_close_to_signal_last_seconds",
            "gauge",
            "The same, of the last batch",
            _at("decisions", "last_close_to_signal_ms", scale=1e-3),
        ),
        Metric(
            "perpline_market_close_to_signal_seconds",
            "summary",
            "From T to the signals on the bus: holds the exchange's own delay",
            _quantiles("decisions", "market_close_to_signal_ms"),
            ("quantile",),
        ),
        Metric(
            "perpline_stage_seconds",
            "summary",
            "How long each stage of a batch took",
            _quantiles_of_each("decisions", "stages_ms"),
            ("stage", "quantile"),
        ),
    ),
    "Models": (
        Metric("perpline_model_info", "gauge", "1 for each model in force", _model_info, ("slot", "model")),
        Metric("perpline_model_refused", "gauge", "Whether the last model of a slot was refused", _refused, ("slot",)),
        Metric(
            "perpline_shadow_predictions_total",
            "counter",
            "Predictions of shadows that were stored",
            _each("models", "shadows", key="rows"),
            ("slot",),
        ),
        Metric(
            "perpline_shadow_batches_lost_total",
            "counter",
            "Batches that no shadow has scored",
            _at("models", "shadow_batches_lost"),
        ),
        Metric(
            "perpline_model_psi", "gauge", "Distance of today's column from training (PSI)", _today("psi"), ("column",)
        ),
        Metric(
            "perpline_model_missing_ratio",
            "gauge",
            "Share of today's rows without a value in a column",
            _today("missing"),
            ("column",),
        ),
        Metric(
            "perpline_model_drifting_columns",
            "gauge",
            "Columns further from training than 99 % of its days; of the newest day that is long enough",
            _judged(lambda day: len(day["drifting"])),
        ),
        Metric("perpline_model_signals", "gauge", "Signals of today", _today("signals")),
        Metric(
            "perpline_model_signals_usual",
            "gauge",
            "Signals that training leads to expect today",
            _today("signals_usual"),
        ),
        Metric(
            "perpline_model_signals_unusual",
            "gauge",
            "Whether there are far more or fewer; of the newest day that is long enough",
            _judged(lambda day: float(day["signals_unusual"])),
        ),
    ),
    "Rows on their way to the database": (
        Metric(
            "perpline_database_away",
            "gauge",
            "Whether decisions or rows wait on disk for it, or the lease cannot be renewed",
            _database_away,
        ),
        Metric(
            "perpline_buffer_waiting_rows",
            "gauge",
            "Rows in memory that are not written yet",
            _each("buffers", key="waiting"),
            ("table",),
        ),
        Metric(
            "perpline_buffer_written_rows_total", "counter", "Rows written", _each("buffers", key="written"), ("table",)
        ),
        Metric(
            "perpline_buffer_dropped_rows_total",
            "counter",
            "Rows dropped because too many waited; each is in a gap",
            _each("buffers", key="dropped"),
            ("table",),
        ),
        Metric("perpline_spool_bytes", "gauge", "Bytes of what waits on disk for the database", _at("spool", "bytes")),
        Metric("perpline_spool_max_bytes", "gauge", "Bytes that may wait there", _at("spool", "max_bytes")),
        Metric(
            "perpline_spool_records", "gauge", "Batches of rows and decisions that wait there", _at("spool", "records")
        ),
        Metric(
            "perpline_spool_oldest_seconds",
            "gauge",
            "How long the oldest of them has waited; not there where none waits",
            _at("spool", "oldest_s"),
        ),
        Metric(
            "perpline_spool_error",
            "gauge",
            "Whether the spool took nothing when it was last asked",
            _set("spool", "error"),
        ),
        Metric("perpline_spool_spooled_total", "counter", "Batches that went to the spool", _at("spool", "spooled")),
        Metric(
            "perpline_spool_replayed_total",
            "counter",
            "Batches of the spool that the database has taken",
            _at("spool", "replayed"),
        ),
        Metric(
            "perpline_spool_dropped_total",
            "counter",
            "Batches dropped because the spool was full",
            _at("spool", "dropped"),
        ),
    ),
    "Messages to the bus": (
        Metric("perpline_outbox_pending", "gauge", "Messages not yet published", _at("outbox", "pending")),
        Metric("perpline_outbox_published_total", "counter", "Messages published", _at("outbox", "published")),
        Metric("perpline_outbox_failures", "gauge", "Failures to publish in a row", _at("outbox", "failures")),
        Metric(
            "perpline_outbox_published_timestamp_seconds", "gauge", "When messages were last published", _published_at
        ),
    ),
    "Requests to the exchange": (
        Metric("perpline_rest_weight_used", "gauge", "Request weight of this minute", _at("rest", "weight_used")),
        Metric("perpline_rest_weight_own", "gauge", "Of this, our own", _at("rest", "weight_own")),
        Metric(
            "perpline_rest_weight_budget",
            "gauge",
            "Request weight that we allow ourselves",
            _at("rest", "weight_budget"),
        ),
        Metric(
            "perpline_rest_weight_limit",
            "gauge",
            "Request weight that the exchange allows",
            _at("rest", "weight_limit"),
        ),
        Metric("perpline_rest_blocked", "gauge", "Whether the exchange has told us to stop", _blocked),
        Metric("perpline_rest_budget_processes", "gauge", "Processes that share the request weight", _budget_processes),
        Metric(
            "perpline_rest_budget_away", "gauge", "Whether the shared budget of request weight is away", _budget_away
        ),
        Metric(
            "perpline_rest_pool_requests",
            "gauge",
            "Our requests to a pool in the last five minutes",
            _each("rest", "pools"),
            ("pool",),
        ),
        Metric(
            "perpline_rest_requests_total",
            "counter",
            "Requests sent",
            _each("rest", "by_priority", key="requests"),
            ("priority",),
        ),
        Metric(
            "perpline_rest_given_back_total",
            "counter",
            "Requests that found no turn in time",
            _each("rest", "by_priority", key="given_back"),
            ("priority",),
        ),
        Metric(
            "perpline_rest_priority_weight",
            "gauge",
            "Request weight of this minute that we used",
            _each("rest", "by_priority", key="weight"),
            ("priority",),
        ),
        Metric(
            "perpline_rest_priority_weight_allowed",
            "gauge",
            "Weight up to which a priority may fill a minute",
            _each("rest", "by_priority", key="weight_allowed"),
            ("priority",),
        ),
        Metric(
            "perpline_rest_waiting",
            "gauge",
            "Requests that wait for their turn",
            _each("rest", "by_priority", key="waiting"),
            ("priority",),
        ),
        Metric(
            "perpline_rest_wait_seconds",
            "summary",
            "How long requests waited for their turn",
            _quantiles_of_each("rest", "by_priority", key="wait_ms"),
            ("priority", "quantile"),
        ),
        Metric(
            "perpline_poll_requests_total",
            "counter",
            "Requests for a series",
            _each("polls", key="requests"),
            ("series",),
        ),
        Metric("perpline_poll_rows_total", "counter", "Rows that came of it", _each("polls", key="rows"), ("series",)),
        Metric(
            "perpline_poll_failures_total",
            "counter",
            "Requests that failed",
            _each("polls", key="failures"),
            ("series",),
        ),
        Metric(
            "perpline_poll_unfinished_total",
            "counter",
            "Symbols whose row had not come when their round ended",
            _each("polls", key="unfinished"),
            ("series",),
        ),
        Metric(
            "perpline_poll_rounds_skipped_total",
            "counter",
            "Rounds left out because the one before took so long",
            _each("polls", key="rounds_skipped"),
            ("series",),
        ),
        Metric(
            "perpline_poll_success_timestamp_seconds",
            "gauge",
            "When a row last came, market time; 0 for never",
            _each("polls", key="last_success_at", scale=1e-3),
            ("series",),
        ),
    ),
    "Trading": (
        Metric(
            "perpline_trading_mode",
            "gauge",
            "1 for the mode in force, of all symbols and of those with one of their own",
            _modes,
            ("symbol", "mode"),
        ),
        Metric("perpline_trading_keys", "gauge", "Whether there are API keys", _at("trading", "keys")),
        Metric(
            "perpline_equity_usdt",
            "gauge",
            "Wallet and what open positions are worth",
            _accounts(lambda each: each["equity"]),
            ("account",),
        ),
        Metric("perpline_wallet_usdt", "gauge", "The wallet", _accounts(lambda each: each["wallet"]), ("account",)),
        Metric(
            "perpline_unrealized_pnl_usdt",
            "gauge",
            "What open positions are worth against their entries",
            _accounts(lambda each: each["unrealized_pnl"]),
            ("account",),
        ),
        Metric(
            "perpline_closed_pnl_usdt",
            "gauge",
            "Of the positions closed since the start, after fees and funding",
            _accounts(lambda each: each["net_pnl"]),
            ("account",),
        ),
        Metric(
            "perpline_day_equity_usdt",
            "gauge",
            "The equity that the day (UTC) began with",
            _accounts(lambda each: each["day_equity"]),
            ("account",),
        ),
        Metric(
            "perpline_daily_loss_ratio",
            "gauge",
            "How much of that is lost; negative: won",
            _accounts(_daily_loss),
            ("account",),
        ),
        Metric(
            "perpline_daily_loss_limit_ratio",
            "gauge",
            "At how much no position is opened until midnight UTC",
            _at("trading", "daily_loss_limit_pct", scale=0.01),
        ),
        Metric(
            "perpline_positions",
            "gauge",
            "Open positions",
            _accounts(lambda each: len(each["positions"])),
            ("account",),
        ),
        Metric(
            "perpline_positions_unprotected",
            "gauge",
            "Of these, positions without a confirmed stop",
            _accounts(_unprotected),
            ("account",),
        ),
        Metric(
            "perpline_live_unattended_symbols",
            "gauge",
            "Symbols of open live positions that no process looks after",
            _unattended,
        ),
        Metric(
            "perpline_naked_seconds",
            "gauge",
            "How long a position is without a confirmed stop now, the longest",
            _accounts(lambda each: each["naked_ms"] / 1000),
            ("account",),
        ),
        Metric(
            "perpline_naked_longest_seconds",
            "gauge",
            "The longest a position was without one since the start",
            _accounts(lambda each: each["naked_ms_longest"] / 1000),
            ("account",),
        ),
        Metric(
            "perpline_trading_blocked",
            "gauge",
            "Whether no position is opened at all",
            _accounts(lambda each: bool(each["blocked"])),
            ("account",),
        ),
        Metric(
            "perpline_orders_under_way",
            "gauge",
            "Orders whose end is not known yet",
            _accounts(lambda each: each["orders_under_way"]),
            ("account",),
        ),
        Metric(
            "perpline_trading_waiting_rows",
            "gauge",
            "Rows and messages of trading that wait for the database",
            _accounts(lambda each: each["unwritten"]),
            ("account",),
        ),
        Metric(
            "perpline_entries_total", "counter", "Entries sent", _accounts(lambda each: each["entries"]), ("account",)
        ),
        Metric(
            "perpline_exits_total",
            "counter",
            "Closing orders sent",
            _accounts(lambda each: each["exits"]),
            ("account",),
        ),
        Metric(
            "perpline_positions_closed_total",
            "counter",
            "Positions that ended",
            _accounts(lambda each: each["closed"]),
            ("account",),
        ),
        Metric(
            "perpline_order_refusals_total",
            "counter",
            "Signals that were not traded: no order was made, or none taken",
            _accounts(lambda each: each["refusals"]),
            ("account",),
        ),
        Metric(
            "perpline_trading_alarms_total",
            "counter",
            "Alarms of trading: each is an error in the log",
            _accounts(lambda each: each["alarms"]),
            ("account",),
        ),
        Metric(
            "perpline_user_stream_live",
            "gauge",
            "Whether the account's events are heard",
            _at("trading", "live", "user_stream", "live"),
        ),
        Metric(
            "perpline_user_stream_connects_total",
            "counter",
            "How often the stream of the account was opened",
            _at("trading", "live", "user_stream", "connects"),
        ),
        Metric(
            "perpline_user_stream_malformed_total",
            "counter",
            "Events of the account that could not be understood",
            _at("trading", "live", "user_stream", "malformed"),
        ),
        Metric(
            "perpline_order_socket_ready",
            "gauge",
            "Whether orders can go over it; else they go over REST",
            _at("trading", "live", "order_socket"),
        ),
        Metric(
            "perpline_reconciliations_total",
            "counter",
            "How often the books were compared with the exchange's",
            _at("trading", "live", "reconciliations"),
        ),
        Metric(
            "perpline_reconciled_timestamp_seconds",
            "gauge",
            "When they were last, market time",
            _at("trading", "live", "reconciled_at", scale=1e-3),
        ),
    ),
    "Nights": (
        Metric(
            "perpline_parity_timestamp_seconds",
            "gauge",
            "When parity was last tried, market time",
            _at("parity", "ran_at", scale=1e-3),
        ),
        Metric("perpline_parity_ok", "gauge", "Whether nothing differed", _parity_ok),
        Metric(
            "perpline_parity_cells", "gauge", "Feature cells of a day that were computed again", _at("parity", "cells")
        ),
        Metric(
            "perpline_parity_mismatch_cells",
            "gauge",
            "Of these, cells with other bits than live had",
            _at("parity", "mismatch_cells"),
        ),
        Metric(
            "perpline_parity_late_cells",
            "gauge",
            "Of these, cells of rows with a late input",
            _at("parity", "late_cells"),
        ),
        Metric(
            "perpline_parity_mismatch_probabilities",
            "gauge",
            "Probabilities that differ though the features do not",
            _at("parity", "mismatch_probabilities"),
        ),
        Metric(
            "perpline_archive_timestamp_seconds",
            "gauge",
            "When old days were last archived, market time",
            _at("archive", "ran_at", scale=1e-3),
        ),
        Metric("perpline_archive_ok", "gauge", "Whether that ended well", _ended_well("archive")),
        Metric(
            "perpline_archive_incomplete",
            "gauge",
            "Days that stay in the database because the archive would lack rows",
            _at("archive", "days_with_gaps"),
        ),
        Metric(
            "perpline_outcomes_ok",
            "gauge",
            "Whether the last run for outcomes of signals ended well",
            _ended_well("outcomes"),
        ),
        Metric(
            "perpline_outcomes_waiting_signals",
            "gauge",
            "Signals of the last week whose trade is over and whose prices are missing",
            _at("outcomes", "waiting"),
        ),
        Metric(
            "perpline_outcomes_left_out_signals",
            "gauge",
            "Of that week, signals without prices for three days",
            _at("outcomes", "left_out"),
        ),
    ),
    "Disk": (
        Metric("perpline_database_bytes", "gauge", "Bytes of the database", _at("room", "database_bytes")),
        Metric(
            "perpline_spool_folder_bytes",
            "gauge",
            "Bytes of the spool's folder, with what is reserved",
            _at("room", "spool_bytes"),
        ),
        Metric(
            "perpline_disk_bytes", "gauge", "Size of the fullest disk that is written to", _at("room", "disk_bytes")
        ),
        Metric("perpline_disk_free_bytes", "gauge", "Bytes free on it", _at("room", "disk_free_bytes")),
        Metric(
            "perpline_disk_full_in_seconds",
            "gauge",
            "When it is full at the rate of the last hours; not there where it does not grow",
            _at("room", "days_until_full", scale=86_400.0),
        ),
        Metric("perpline_disk_low", "gauge", "Whether that is an alarm", _set("room", "low")),
    ),
    "Collectors": (
        Metric("perpline_feature_batches_sent_total", "counter", "Batches of features sent", _at("sender", "batches")),
        Metric("perpline_feature_rows_sent_total", "counter", "Rows of features sent", _at("sender", "rows")),
        Metric(
            "perpline_feature_rows_lost_total",
            "counter",
            "Rows given up because Redis was away for too long",
            _at("sender", "not_sent"),
        ),
        Metric("perpline_features_away", "gauge", "Whether they cannot be sent now", _set("sender", "last_error")),
        Metric(
            "perpline_close_to_stream_seconds",
            "summary",
            "From the receipt of a batch's last closing frame to its features in Redis",
            _quantiles("sender", "close_to_stream_ms"),
            ("quantile",),
        ),
    ),
    "Inference workers": (
        Metric(
            "perpline_writes_missed",
            "gauge",
            "Whether this one of its group writes the minutes that nobody decided",
            _at("group", "writes_missed"),
        ),
        Metric(
            "perpline_collector_silent",
            "gauge",
            "Whether a collector is silent",
            _each("group", "shards", key="silent"),
            ("shard",),
        ),
        Metric(
            "perpline_collector_symbols",
            "gauge",
            "Symbols of a collector",
            _each("group", "shards", key="symbols"),
            ("shard",),
        ),
        Metric(
            "perpline_collector_age_seconds",
            "gauge",
            "Seconds since a collector was heard",
            _each("group", "shards", key="heard_s"),
            ("shard",),
        ),
        Metric(
            "perpline_feature_batches_decided_total",
            "counter",
            "Batches that were decided here",
            _at("group", "decided"),
        ),
        Metric(
            "perpline_feature_batches_claimed_total",
            "counter",
            "Batches taken over from dead members",
            _at("group", "claimed"),
        ),
        Metric(
            "perpline_feature_batches_too_late_total",
            "counter",
            "Batches not decided in time",
            _at("group", "too_late"),
        ),
        Metric(
            "perpline_feature_batches_unreadable_total",
            "counter",
            "Batches that could not be read",
            _at("group", "unreadable"),
        ),
    ),
}
"""By what they tell of."""

METRICS = tuple(metric for group in GROUPS.values() for metric in group)
