"""What a worker says of itself: the facts of /status, the same as Prometheus metrics, and what counts as trouble."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from perpline import __version__
from perpline.bootstrap import Parts
from perpline.collector.rest_poller import RestPoller
from perpline.exchange.binance.weight import WeightLedger
from perpline.websocket.connection import Connection
from perpline.websocket.market_streams import MarketStreams
from perpline.websocket.subscriptions import STREAM_TYPES

Heard = Callable[[str, str], float | None]
"""(symbol, kind) -> wall seconds at which this kind of news of the symbol last came, None for never."""


def parts_status(
    parts: Parts, streams: MarketStreams | None, heard: Heard, poller: RestPoller, weight: WeightLedger
) -> dict[str, Any]:
    """Everything about a worker that a person or a program may want to know, as plain JSON values.

    Times are milliseconds of the exchange's market time, ages wall seconds (a stream is silent in wall time).
    """
    clock, engine, router = parts.clock, parts.engine, parts.router
    return {
        "version": __version__,
        "slot": parts.settings.slot,
        "role": parts.settings.role,
        "shard": parts.settings.shard if parts.settings.role == "collector" else None,
        "leadership": None if parts.leadership is None else parts.leadership.status(),
        "model": None if engine.model is None else engine.model.model_id,
        "models": {**engine.models_status(), "refused": parts.loader.refused if parts.loader is not None else {}},
        "now": clock.exchange_now_ms(),
        "speed": clock.speed,
        "clock_offset_ms": clock.offset_ms,
        "exchange": {
            "ws": parts.settings.binance_futures_ws_url,
            "rest": parts.settings.binance_futures_rest_url,
        },
        "connections": [_connection(each, clock.wall_s()) for each in (streams.connections if streams else ())],
        "streams": None if streams is None else streams.facts(),
        "messages": {
            "total": router.total,
            "routed": router.routed,
            "unhandled": router.unhandled,
            "malformed": router.malformed,
            "failed": router.failed,
            "superseded": router.superseded,
            "by_kind": dict(router.by_kind),
            "rates": router.rates(),
            "unhandled_types": dict(router.unhandled_types),
            "unknown_fields": dict(parts.fields.counts),
            "dropped": dict(parts.dropped),
            "repeats": {
                "markPrice": parts.marks.repeats,
                "bookTicker": parts.books.repeats,
                "closed_kline": parts.closed.repeats,
            },
        },
        "decisions": {
            "by_status": {str(status): count for status, count in engine.by_status.items()},
            "batches": engine.batches,
            "close_to_signal_ms": engine.close_to_signal_ms.summary(),
            "market_close_to_signal_ms": engine.market_close_to_signal_ms.summary(),
        },
        "candles": {
            "closed": parts.klines.closed,
            "late_closes": parts.closed.late_closes,
            "repeats": parts.closed.repeats,
            "revisions": parts.closed.revisions,
            "synthetic": parts.closed.synthetic,
            "gaps_noted": parts.ledger.noted,
            "given_up": sum(len(holes) for holes in parts.closed.given_up.values()),
        },
        "trading": None if parts.accounts is None else parts.accounts.status(),
        "buffers": msgspec.to_builtins(parts.buffer.statistics()),
        "outbox": msgspec.to_builtins(parts.publisher.statistics()),
        "spool": _spool_status(parts),
        "rest": weight.facts(),
        "polls": msgspec.to_builtins(poller.series),
        "symbols": symbols_status(parts, heard),
    }


def symbols_status(parts: Parts, heard: Heard) -> dict[str, Any]:
    """One entry a symbol: newest prices, last candle, last decision, age of each stream."""
    now_s = parts.clock.wall_s()
    table = {}
    for symbol in parts.symbols:
        book, mark = parts.books.get(symbol), parts.marks.latest.get(symbol)
        candle, decision = parts.klines.last_closed["1m"].get(symbol), parts.engine.last_decision.get(symbol)
        ages = {}
        for kind in STREAM_TYPES:
            at = heard(symbol, kind)
            ages[kind] = None if at is None else round(now_s - at, 2)
        forming = parts.klines.get(symbol, "1m")
        table[symbol] = {
            "price": forming.close if forming else candle.close if candle else None,
            "bid": book.bid if book else None,
            "ask": book.ask if book else None,
            "spread_bps": round(book.spread_bps, 3) if book else None,
            "mark_price": mark.mark_price if mark else None,
            "index_price": mark.index_price if mark else None,
            "funding_rate": mark.funding_rate if mark else None,
            "next_funding_time": mark.next_funding_time if mark else None,
            "last_candle": {"open_time": candle.open_time, "close": candle.close, "source": candle.source}
            if candle
            else None,
            "last_decision": {
                "close_time": decision.close_time,
                "status": str(decision.status),
                "side": decision.side,
                "p": decision.p_cal,
                "detail": decision.detail,
            }
            if decision
            else None,
            "ages_s": ages,
        }
    return table


def _spool_status(parts: Parts) -> dict[str, Any] | None:
    """What waits on disk for the database; None where there is no spool."""
    if parts.spool is None:
        return None
    facts = parts.spool.statistics()
    age_s = None
    if facts.oldest_ms is not None:
        age_s = round(max(0, parts.clock.now_ms() - facts.oldest_ms) / 1000 / parts.clock.speed, 1)
    decisions = None if parts.journal is None else msgspec.to_builtins(parts.journal.statistics())
    return {**msgspec.to_builtins(facts), "oldest_s": age_s, "decisions": decisions}


def trouble(parts: Parts, streams: MarketStreams | None, ready: bool) -> list[str]:
    """What is wrong, in words; empty where nothing is."""
    found = [] if ready else ["not ready yet: waiting for the first data of every stream"]
    if streams is not None:
        found += streams.trouble()
    if parts.buffer.last_error:
        found.append(f"rows wait for the database: {parts.buffer.last_error}")
    if parts.journal is not None and (journal_error := parts.journal.statistics().last_error):
        found.append(f"decisions wait in the spool for the database: {journal_error}")
    if parts.spool is not None and (spool_error := parts.spool.statistics().error):
        found.append(spool_error)
    if publisher_error := parts.publisher.statistics().last_error:
        found.append(f"messages wait in the outbox: {publisher_error}")
    if parts.sender is not None and parts.sender.last_error:
        found.append(f"features are not sent: {parts.sender.last_error}")
    if parts.accounts is not None:
        found += trading_trouble(parts.accounts.status(), parts.settings.naked_alarm_s)
    if parts.router.failed:
        found.append(f"{parts.router.failed} messages met a bug in a handler: see the log")
    return found


def trading_trouble(trading: dict[str, Any], naked_alarm_s: float) -> list[str]:
    """What is wrong with trading: positions without a stop, events not heard, rows not stored."""
    found = []
    for account, each in trading["accounts"].items():
        naked = [row["symbol"] for row in each["positions"] if row["naked_ms"] > naked_alarm_s * 1000]
        if naked:
            found.append(f"{account} positions without a stop at the exchange: {', '.join(naked)}")
        if each["rows_error"]:
            found.append(f"{each['unwritten']} rows of the {account} account wait for the database")
    wants_live = any(row["mode"] == "live" for row in trading["modes"])
    has_live = bool(trading["accounts"].get("live", {}).get("positions"))
    if wants_live and not trading["keys"]:
        found.append("the mode is live and there is no API key")
    stands_by = "live" in trading["waiting_for_lease"]  # another process trades the account: that one's trouble
    if (wants_live or has_live) and trading["keys"] and not stands_by:
        live = trading["live"]
        if live is None:
            found.append("the live account has not begun: see the log")
        elif not live["user_stream"]["live"]:
            found.append(f"the user data stream is not heard: {live['user_stream']['last_error'] or 'connecting'}")
    return found


def _connection(connection: Connection, now_s: float) -> dict[str, Any]:
    silent = connection.silent_streams()
    return {
        "name": connection.name,
        "url": connection.url,
        "live": connection.live,
        "streams": len(connection.streams),
        "silent": silent[:20],
        "silent_count": len(silent),
        "messages": connection.messages,
        "connects": connection.connects,
        "losses": connection.losses,
        "rollovers": connection.rollovers,
        "rollovers_given_up": connection.rollovers_given_up,
        "rolling_over": connection.is_rolling_over,
        "age_s": None if connection.age_s is None else round(connection.age_s, 1),
        "resubscriptions": connection.resubscriptions,
        "delivers_nothing": connection.delivers_nothing,
        "failures_in_a_row": connection.failures,
        "last_error": connection.last_error,
        "quiet_s": None if connection.last_message_at is None else round(now_s - connection.last_message_at, 2),
    }


def metrics(status: dict[str, Any]) -> bytes:
    """The status as Prometheus text. Names follow its conventions: base units, `_total` for counters."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return generate_latest(registry)


class _StatusCollector(Collector):
    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status
        messages = status["messages"]
        yield _counter(
            "perpline_messages",
            "Messages received, by outcome",
            "outcome",
            {name: messages[name] for name in ("routed", "unhandled", "malformed", "failed")},
        )
        yield _counter("perpline_stream_messages", "Messages decoded, by kind", "kind", messages["by_kind"])
        yield _counter("perpline_unknown_fields", "Unknown fields seen, by name", "field", messages["unknown_fields"])
        yield _counter("perpline_decisions", "Decisions stored, by status", "status", status["decisions"]["by_status"])
        for name in ("close_to_signal_ms", "market_close_to_signal_ms"):
            family = GaugeMetricFamily(
                f"perpline_{name.removesuffix('_ms')}_seconds", "Recent latency, by quantile", labels=["quantile"]
            )
            for quantile, key in (("0.5", "p50"), ("0.99", "p99")):
                value = status["decisions"][name].get(key)
                if value is not None:
                    family.add_metric([quantile], value / 1000)
            yield family
        for name, help_text in (
            ("closed", "Closed candles delivered"),
            ("late_closes", "Closes asked of REST because no frame came in time"),
            ("repeats", "Closed candles that had come before"),
            ("revisions", "Fields in which a repeated candle differed"),
            ("synthetic", "Candles made for minutes that the exchange does not have"),
            ("gaps_noted", "Holes in candles noted"),
        ):
            yield CounterMetricFamily(f"perpline_candles_{name}", help_text, value=status["candles"][name])
        live = GaugeMetricFamily(
            "perpline_connection_live", "Whether data comes on a connection", labels=["connection"]
        )
        losses = CounterMetricFamily("perpline_connection_losses", "Connections lost after data", labels=["connection"])
        nothing = GaugeMetricFamily(
            "perpline_connection_delivers_nothing",
            "Whether a connection is open and has delivered no data by its deadline",
            labels=["connection"],
        )
        for connection in status["connections"]:
            live.add_metric([connection["name"]], float(connection["live"]))
            losses.add_metric([connection["name"]], connection["losses"])
            nothing.add_metric([connection["name"]], float(bool(connection["delivers_nothing"])))
        yield live
        yield losses
        yield nothing
        yield _counter("perpline_repeats", "Messages dropped that had come before", "kind", messages["repeats"])
        if status["streams"] is not None:
            yield from _streams(status["streams"])
        rest = status["rest"]
        yield GaugeMetricFamily("perpline_rest_weight_used", "Request weight of this minute", value=rest["weight_used"])
        yield GaugeMetricFamily(
            "perpline_rest_weight_limit", "Request weight allowed a minute", value=rest["weight_limit"]
        )
        yield from _rest_by_priority(rest["by_priority"])
        yield GaugeMetricFamily(
            "perpline_rest_budget_processes",
            "Processes that share the request weight of this address",
            value=rest["shared"]["processes"] if rest["shared"] else 1,
        )
        yield GaugeMetricFamily(
            "perpline_rest_budget_away",
            "Whether the shared budget of request weight cannot be reached",
            value=float(bool(rest["shared"] and rest["shared"]["away"])),
        )
        yield GaugeMetricFamily(
            "perpline_rest_blocked", "Whether the exchange has told us to stop", value=float(rest["blocked_until"] > 0)
        )
        yield GaugeMetricFamily(
            "perpline_clock_offset_seconds",
            "How far the exchange's clock is ahead of ours",
            value=status["clock_offset_ms"] / 1000,
        )
        yield GaugeMetricFamily(
            "perpline_outbox_pending", "Messages not yet published", value=status["outbox"]["pending"]
        )
        yield from _spool_metrics(status["spool"])
        age = GaugeMetricFamily(
            "perpline_stream_age_seconds", "Wall seconds since a stream was heard", labels=["symbol", "stream"]
        )
        for symbol, entry in status["symbols"].items():
            for stream, seconds in entry["ages_s"].items():
                if seconds is not None:
                    age.add_metric([symbol, stream], seconds)
        yield age
        yield from _models(status["models"], status["slot"])
        if (leadership := status["leadership"]) is not None:
            leads = float(leadership["leads"])
            yield GaugeMetricFamily("perpline_leads", "Whether this process leads, and does not stand by", value=leads)
            fencing = float(leadership["fencing"] or 0)
            under = "Number of the lease that it leads under; 0 while it does not"
            yield GaugeMetricFamily("perpline_fencing_number", under, value=fencing)
            terms = leadership["terms"]
            yield CounterMetricFamily("perpline_terms", "How often this process has begun to lead", value=terms)
        yield GaugeMetricFamily("perpline_ready", "Whether every stream has delivered", value=float(status["ready"]))
        yield from trading_metrics(status["trading"])
        yield from parity_metrics(status["parity"])
        yield from room_metrics(status["room"])


def _streams(streams: dict[str, Any]) -> Iterable[Metric]:
    yield GaugeMetricFamily("perpline_lanes", "Connections that carry the same streams", value=streams["lanes"])
    stale = GaugeMetricFamily(
        "perpline_streams_stale", "Streams that are silent though they should not be", labels=["connection"]
    )
    for connection, names in streams["stale"].items():
        stale.add_metric([connection], len(names))
    yield stale
    for name, help_text in (
        ("rollovers", "Connections replaced without a gap"),
        ("rollovers_given_up", "New connections that did not prove themselves beside the old one"),
        ("resubscriptions", "Streams asked for again"),
        ("stale_renewals", "Connections renewed because a stream stayed silent"),
    ):
        yield CounterMetricFamily(f"perpline_{name}", help_text, value=streams[name])


def _spool_metrics(spool: dict[str, Any] | None) -> Iterable[Metric]:
    if spool is None:
        return
    for name, help_text, value in (
        ("bytes", "Bytes of what waits on disk for the database", spool["bytes"]),
        ("max_bytes", "Bytes that may wait there", spool["max_bytes"]),
        ("records", "Batches of rows and decisions that wait there", spool["records"]),
        ("oldest_seconds", "How long the oldest of them has waited, wall seconds", spool["oldest_s"] or 0),
        ("error", "Whether the spool took nothing when it was last asked", float(bool(spool["error"]))),
    ):
        yield GaugeMetricFamily(f"perpline_spool_{name}", help_text, value=value)
    for name, help_text in (
        ("spooled", "Batches that went to the spool"),
        ("replayed", "Batches of the spool that the database has taken"),
        ("dropped", "Batches dropped because the spool was full"),
    ):
        yield CounterMetricFamily(f"perpline_spool_{name}", help_text, value=spool[name])


def _models(models: dict[str, Any], own_slot: str) -> Iterable[Metric]:
    info = GaugeMetricFamily("perpline_model_info", "1 for each model in force", labels=["slot", "model"])
    champion = models["champion"]
    in_force = {**({} if champion is None else {own_slot: champion}), **models["shadows"]}
    for slot, entry in in_force.items():
        info.add_metric([slot, entry["model_id"] or ""], 1)
    yield info
    refused = GaugeMetricFamily(
        "perpline_model_refused", "Whether the last model of a slot was refused", labels=["slot"]
    )
    for slot in {**in_force, **models["refused"]}:
        refused.add_metric([slot], float(slot in models["refused"]))
    yield refused
    rows = {slot: entry["rows"] for slot, entry in models["shadows"].items()}
    yield _counter("perpline_shadow_predictions", "Predictions of shadows that were stored", "slot", rows)
    yield CounterMetricFamily(
        "perpline_shadow_batches_lost", "Batches that no shadow has scored", value=models["shadow_batches_lost"]
    )
    drift = models["drift"]
    if drift is None or drift["today"] is None:
        return
    today = drift["today"]
    for name, help_text, values in (
        ("perpline_model_psi", "Distance of today's column from training (PSI)", today["psi"]),
        ("perpline_model_missing_share", "Share of today's rows without a value in a column", today["missing"]),
    ):
        family = GaugeMetricFamily(name, help_text, labels=["column"])
        for column, value in values.items():
            family.add_metric([column], value)
        yield family
    judged = today if today["judged"] else drift["yesterday"]
    if judged is not None and judged["judged"]:
        yield GaugeMetricFamily(
            "perpline_model_drifting_columns",
            "Columns further from training than 99 % of its days",
            value=len(judged["drifting"]),
        )
    yield GaugeMetricFamily("perpline_model_signals", "Signals of today", value=today["signals"])
    if today["signals_usual"] is not None:
        yield GaugeMetricFamily(
            "perpline_model_signals_usual", "Signals that training leads to expect today", value=today["signals_usual"]
        )


def parity_metrics(found: dict[str, Any] | None) -> Iterable[Metric]:
    """Of the last nightly comparison; nothing before the first, and no cells where it failed."""
    if found is None:
        return
    yield GaugeMetricFamily("perpline_parity_time_seconds", "When parity was last tried", value=found["ran_at"] / 1000)
    yield GaugeMetricFamily("perpline_parity_ok", "Whether nothing differed", value=float(found.get("ok", False)))
    for name, help_text in (
        ("cells", "Feature cells of a day that were computed again"),
        ("mismatch_cells", "Of these, cells with other bits than live had"),
        ("late_cells", "Of these, cells of rows with a late input"),
        ("mismatch_probabilities", "Probabilities that differ though the features do not"),
    ):
        if name in found:
            yield GaugeMetricFamily(f"perpline_parity_{name}", help_text, value=found[name])


def room_metrics(room: dict[str, Any] | None) -> Iterable[Metric]:
    """Of the disk; nothing before the first look."""
    if room is None:
        return
    for name, help_text, key in (
        ("database_bytes", "Bytes of the database", "database_bytes"),
        ("spool_bytes", "Bytes of the spool's folder, with what is reserved", "spool_bytes"),
        ("disk_free_bytes", "Bytes free on the fullest disk that is written to", "disk_free_bytes"),
        ("disk_days_until_full", "Days until it is full at the rate of the last hours", "days_until_full"),
    ):
        if room[key] is not None:
            yield GaugeMetricFamily(f"perpline_{name}", help_text, value=room[key])
    yield GaugeMetricFamily("perpline_disk_low", "Whether that is an alarm", value=float(bool(room["low"])))


def trading_metrics(trading: dict[str, Any] | None) -> Iterable[Metric]:
    """Modes and accounts; nothing where the process does not trade at all (a replay)."""
    if trading is None:
        return
    modes = GaugeMetricFamily(
        "perpline_trading_mode", "1 for the mode in force, of a symbol or of all", labels=["symbol", "mode"]
    )
    for symbol, in_force in ({"": "off"} | {row["symbol"]: row["mode"] for row in trading["modes"]}).items():
        for mode in ("off", "paper", "live"):
            modes.add_metric([symbol or "all", mode], float(mode == in_force))
    yield modes
    accounts = trading["accounts"]

    def gauge(name: str, help_text: str, values: Mapping[str, float | None]) -> Metric:
        family = GaugeMetricFamily(f"perpline_{name}", help_text, labels=["account"])
        for account, value in values.items():
            if value is not None:
                family.add_metric([account], value)
        return family

    for name, help_text, key in (
        ("equity_usdt", "Wallet and what open positions are worth", "equity"),
        ("unrealized_pnl_usdt", "What open positions are worth against their entries", "unrealized_pnl"),
        ("orders_under_way", "Orders whose end is not known yet", "orders_under_way"),
        ("trading_rows_waiting", "Rows and messages of trading that wait for the database", "unwritten"),
    ):
        yield gauge(name, help_text, {account: each[key] for account, each in accounts.items()})
    positions = {account: float(len(each["positions"])) for account, each in accounts.items()}
    yield gauge("positions", "Open positions", positions)
    for name, help_text, key in (
        ("naked_seconds", "How long a position is without a confirmed stop now, the longest", "naked_ms"),
        ("naked_longest_seconds", "The longest a position was without one since the start", "naked_ms_longest"),
    ):
        yield gauge(name, help_text, {account: each[key] / 1000 for account, each in accounts.items()})
    blocked = {account: float(bool(each["blocked"])) for account, each in accounts.items()}
    yield gauge("trading_blocked", "Whether no entries are made at all", blocked)
    for name, help_text, key in (
        ("entries", "Entries sent", "entries"),
        ("exits", "Closing orders sent", "exits"),
        ("order_refusals", "Signals that were not traded: no order was made, or none taken", "refusals"),
        ("trading_alarms", "Alarms of trading: each is an error in the log", "alarms"),
    ):
        yield _counter(f"perpline_{name}", help_text, "account", {name: each[key] for name, each in accounts.items()})
    if (live := trading["live"]) is not None:
        heard = float(live["user_stream"]["live"])
        yield GaugeMetricFamily("perpline_user_stream_live", "Whether the account's events are heard", value=heard)
        if live["order_socket"] is not None:
            ready = float(live["order_socket"])
            yield GaugeMetricFamily("perpline_order_socket_ready", "Whether orders can go over it", value=ready)


def _rest_by_priority(priorities: dict[str, dict[str, Any]]) -> Iterable[Metric]:
    def each(key: str) -> dict[str, int]:
        return {name: entry[key] for name, entry in priorities.items()}

    yield _counter("perpline_rest_requests", "REST requests sent, by priority", "priority", each("requests"))
    yield _counter(
        "perpline_rest_given_back", "REST requests that found no turn in time", "priority", each("given_back")
    )
    for name, help_text, key in (
        ("perpline_rest_priority_weight", "Request weight of this minute that we used, by priority", "weight"),
        ("perpline_rest_priority_weight_allowed", "Weight up to which a priority may fill a minute", "weight_allowed"),
        ("perpline_rest_waiting", "REST requests that wait for their turn, by priority", "waiting"),
    ):
        gauge = GaugeMetricFamily(name, help_text, labels=["priority"])
        for priority, value in each(key).items():
            gauge.add_metric([priority], value)
        yield gauge
    waits = GaugeMetricFamily(
        "perpline_rest_wait_seconds", "Recent waits of REST requests for their turn", labels=["priority", "quantile"]
    )
    for priority, entry in priorities.items():
        for quantile, key in (("0.5", "p50"), ("0.99", "p99")):
            if entry["wait_ms"][key] is not None:
                waits.add_metric([priority, quantile], entry["wait_ms"][key] / 1000)
    yield waits


def _counter(name: str, help_text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family
