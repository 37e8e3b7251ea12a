"""Signals as a worker publishes them, for tests of what comes after."""

import asyncio
from collections.abc import Sequence

from perpline.bus.redis import RedisBus
from perpline.domain.messages import with_number
from perpline.domain.signal import Decision, Message, Status, signal_id
from perpline.signals.engine import signal_message

MINUTE = 60_000
T0 = 1_795_219_260_000
"""2026-11-20 23:21 UTC."""


def decision(symbol: str, n: int = 0, *, slot: str = "champion", **changes: object) -> Decision:
    """What was decided for the n-th minute: a long signal, unless `changes` say otherwise."""
    values = {
        "side": 1,
        "status": Status.OK,
        "model_id": "baseline",
        "schema_hash": "a91c",
        "p_cal": 0.612,
        "ev_bp": 7.4,
        "tp_price": "68120.0",
        "sl_price": "66780.5",
        "ref_mark": "67450.1",
        "horizon_s": 14_400,
        "cost_bp": 14.0,
        "valid_until": T0 + n * MINUTE + 30_000,
        "xs_n": 30,
        **changes,
    }
    t = T0 + n * MINUTE
    return Decision(signal_id=signal_id(slot, "baseline", symbol, t), slot=slot, symbol=symbol, close_time=t, **values)


def flat(symbol: str, n: int = 0, *, slot: str = "champion", detail: str = "long 0.520 is below 0.580") -> Decision:
    nothing = dict.fromkeys(("tp_price", "sl_price"))
    return decision(symbol, n, slot=slot, side=0, status=Status.FLAT, detail=detail, **nothing)


def published(one: Decision, seq: int = 1) -> Message:
    """Its message as store and publisher complete it."""
    message = signal_message(one)
    payload = with_number(message.payload, "seq", seq)
    payload = with_number(payload, "t_pub_us", (one.close_time + 40) * 1000)
    return Message(
        id=seq,
        kind="signal",
        slot=one.slot,
        symbol=one.symbol,
        close_time=one.close_time,
        payload=payload,
        valid_until=message.valid_until,
    )


def publish(url: str, decisions: Sequence[Decision]) -> None:
    """Put them on the server at `url`. Not inside a running event loop."""

    async def send() -> None:
        bus = RedisBus(url)
        await bus.open()
        await bus.publish([published(one, n + 1) for n, one in enumerate(decisions)], T0)
        await bus.close()

    asyncio.run(send())
