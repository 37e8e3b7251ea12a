"""Closing what the live account holds, by request alone: it needs no worker, no stream and no database."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from hashlib import blake2b

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import OutcomeUnknown, PerplineError, Unavailable
from perpline.domain.instrument import Instrument
from perpline.domain.order import ClientId, ExchangePosition, Leg, OrderRequest, position_id
from perpline.exchange.ports import TradingRest

log = structlog.get_logger("perpline.trading")

ROUNDS = 5
"""So often what is still open is closed; each round looks at the exchange first."""
PAUSE_S = 0.5


class Flattened(Struct, kw_only=True):
    """What was done in a symbol."""

    symbol: str
    closed: str = "0"
    """Quantity that was open at the first look; negative for a short."""
    left: str = "0"
    error: str = ""


async def flatten_live(
    rest: TradingRest,
    clock: Clock,
    instruments: Mapping[str, Instrument],
    *,
    run: int,
    symbols: Sequence[str] = (),
    known: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Flattened]:
    """Close every position, in these symbols or in all, with reduce-only market orders, then cancel their orders.

    Positions first and orders after: the stops rest until there is nothing left to protect. `known` are the ids of our
    own open positions by symbol, which the orders' ids name, so that a worker books them as what they are. An order
    whose outcome is unknown is not sent again; the next round looks what the exchange has. Raises PerplineError where
    the account cannot even be asked for.
    """
    done: dict[str, Flattened] = {}
    touched: set[str] = set(symbols)
    for attempt in range(ROUNDS):
        held = [each for each in await rest.positions() if not symbols or each.symbol in symbols]
        for symbol, each in done.items():
            each.left = next((f"{one.quantity:f}" for one in held if one.symbol == symbol), "0")
        if not held:
            break
        for position in held:
            touched.add(position.symbol)
            entry = done.setdefault(position.symbol, Flattened(symbol=position.symbol, closed=f"{position.quantity:f}"))
            entry.left = f"{position.quantity:f}"
            order = _closing(
                position, instruments.get(position.symbol), run, attempt, (known or {}).get(position.symbol)
            )
            progress(f"{order.side} {order.quantity:f} {order.symbol}, reduce-only")
            try:
                await rest.place_order(order)
                entry.error = ""
            except OutcomeUnknown as error:
                entry.error = f"the answer was lost ({error})"
            except PerplineError as error:
                entry.error = str(error)
        await clock.sleep_wall(PAUSE_S * (1 if attempt == 0 else 2))
    open_orders = {each.symbol for each in await rest.open_orders()} | {each.symbol for each in await rest.open_stops()}
    for symbol in sorted(open_orders if not symbols else open_orders & touched):
        progress(f"cancel every order of {symbol}")
        try:
            await rest.cancel_all(symbol)
        except (OutcomeUnknown, Unavailable):
            await rest.cancel_all(symbol)  # to cancel twice is harmless
    left = {each.symbol: each for each in await rest.positions() if not symbols or each.symbol in symbols}
    for entry in done.values():
        entry.left = f"{left[entry.symbol].quantity:f}" if entry.symbol in left else "0"
        entry.error = entry.error if entry.symbol in left else ""
    return list(done.values())


def _closing(
    position: ExchangePosition, instrument: Instrument | None, run: int, attempt: int, known: str | None
) -> OrderRequest:
    quantity = abs(position.quantity)
    if instrument is not None and instrument.market_max_quantity:
        quantity = min(quantity, instrument.market_max_quantity)
    made_of = blake2b(f"flatten:{position.symbol}:{run}".encode(), digest_size=16).hexdigest()
    return OrderRequest(
        symbol=position.symbol,
        side="sell" if position.quantity > Decimal(0) else "buy",
        quantity=quantity,
        client_id=ClientId(Leg.FLATTEN, run, known or position_id(made_of), attempt).text,
        reduce_only=True,
    )
