"""What a worker says of itself: the facts of /status, and what counts as trouble."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from perpline import __version__
from perpline.bootstrap import Parts
from perpline.collector.rest_feed import RestFeed
from perpline.collector.rest_poller import RestPoller
from perpline.exchange.binance.weight import WeightLedger
from perpline.websocket.connection import Connection
from perpline.websocket.market_streams import MarketStreams
from perpline.websocket.subscriptions import STREAM_TYPES

Heard = Callable[[str, str], float | None]
"""(symbol, kind) -> wall seconds at which this kind of news of the symbol last came, None for never."""


def parts_status(
    parts: Parts, streams: MarketStreams | None, rest_feed: RestFeed | None, poller: RestPoller, weight: WeightLedger
) -> dict[str, Any]:
    """Everything about a worker that a person or a program may want to know but its symbols, as plain JSON values.

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
        "rest_feed": None if rest_feed is None else rest_feed.facts(),
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
            "last_close_to_signal_ms": engine.close_to_signal_ms.last,
            "stages_ms": engine.stages_status(),
        },
        "candles": {
            "closed": parts.klines.closed,
            "late_closes": parts.closed.late_closes,
            "repeats": parts.closed.repeats,
            "revisions": parts.closed.revisions,
            "synthetic": parts.closed.synthetic,
            "gaps_noted": parts.ledger.noted,
            "gaps_open": parts.closed.gaps_open,
            "given_up": sum(len(holes) for holes in parts.closed.given_up.values()),
        },
        "trading": None if parts.accounts is None else parts.accounts.status(),
        "buffers": msgspec.to_builtins(parts.buffer.statistics()),
        "outbox": msgspec.to_builtins(parts.publisher.statistics()),
        "spool": _spool_status(parts),
        "rest": weight.facts(),
        "polls": msgspec.to_builtins(poller.series),
    }


def symbols_status(parts: Parts, heard: Heard, symbols: Iterable[str]) -> dict[str, Any]:
    """One entry for each of these symbols: newest prices, last candle, last decision, age of each stream."""
    now_s = parts.clock.wall_s()
    table = {}
    for symbol in symbols:
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
            "bid_quantity": book.bid_qty if book else None,
            "ask_quantity": book.ask_qty if book else None,
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
            "expected_after": parts.engine.expected.get(symbol),
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


def trouble(parts: Parts, source: MarketStreams | RestFeed | None, ready: bool) -> list[str]:
    """What is wrong, in words; empty where nothing is."""
    found = [] if ready else ["not ready yet: waiting for the first data of every stream"]
    if source is not None:
        found += source.trouble()
    if parts.store.is_moved():
        found.append(
            "the database file was moved or deleted: what is written goes to the old file; put it back or restart"
        )
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
    """What is wrong with trading: positions without a stop or without a trader, events not heard, rows not stored."""
    found = []
    for account, each in trading["accounts"].items():
        naked = [row["symbol"] for row in each["positions"] if row["naked_ms"] > naked_alarm_s * 1000]
        if naked:
            found.append(f"{account} positions without a stop at the exchange: {', '.join(naked)}")
        if each["rows_error"]:
            found.append(f"{each['unwritten']} rows of the {account} account wait for the database")
    wants_live = any(row["mode"] == "live" for row in trading["modes"])
    has_live = bool(trading["accounts"].get("live", {}).get("positions") or trading["live_unattended"])
    if wants_live and not trading["keys"]:
        found.append("the mode is live and there is no API key")
    if trading["live_unattended"] and not trading["keys"]:
        named = ", ".join(trading["live_unattended"])
        found.append(f"the live account has open positions ({named}) and there is no API key to look after them")
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
