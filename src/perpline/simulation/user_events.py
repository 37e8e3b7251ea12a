"""Events of the user data stream, spelled as on the wire of 2026 (binance.md 5)."""

from typing import Any

from perpline.simulation.accounts import ONE, Account, Algo, MarkOf, Order, Position, maintenance
from perpline.simulation.instruments import Instrument, decimal_text

Event = dict[str, Any]


def money(units: int) -> str:
    return decimal_text(units, 8)


def price_text(own: Instrument, price: int) -> str:
    return decimal_text(price // 10 ** (8 - own.price_decimals), own.price_decimals)


def quantity_text(own: Instrument, quantity: int) -> str:
    return decimal_text(quantity // 10 ** (8 - own.quantity_decimals), own.quantity_decimals)


def order_event(
    own: Instrument, order: Order, execution: str, now_ms: int, fill: dict[str, Any] | None = None, reason: str = "0"
) -> Event:
    """ORDER_TRADE_UPDATE. `fill`: the row of userTrades it is about. `reason`: why it expired (`er`)."""
    body: dict[str, Any] = {
        "s": own.symbol,
        "c": order.client_id,
        "S": order.side,
        "o": order.kind,
        "f": order.time_in_force,
        "q": quantity_text(own, order.quantity),
        "p": price_text(own, order.price),
        "ap": money(order.average),
        "sp": "0",
        "x": execution,
        "X": order.status,
        "i": order.id,
        "l": fill["qty"] if fill else "0",
        "z": quantity_text(own, order.filled),
        "L": fill["price"] if fill else "0",
        "n": fill["commission"] if fill else "0",
        "N": "USDT",
        "T": now_ms,
        "t": fill["id"] if fill else 0,
        "b": "0",
        "a": "0",
        "m": fill["maker"] if fill else False,
        "R": order.reduce_only,
        "wt": "CONTRACT_PRICE",
        "ot": order.kind,
        "ps": order.position_side,
        "cp": order.close_position,
        "rp": fill["realizedPnl"] if fill else "0",
        "pP": False,
        "si": 0,
        "ss": 0,
        "V": order.stp,
        "pm": "NONE",
        "gtd": order.good_till_ms,
        "er": reason,
    }
    if order.modify_id:
        body["M"] = order.modify_id
    return {"e": "ORDER_TRADE_UPDATE", "T": now_ms, "E": now_ms, "o": body}


def trade_lite_event(own: Instrument, order: Order, fill: dict[str, Any], now_ms: int) -> Event:
    return {
        "e": "TRADE_LITE",
        "E": now_ms,
        "T": now_ms,
        "s": own.symbol,
        "q": quantity_text(own, order.quantity),
        "p": price_text(own, order.price),
        "m": fill["maker"],
        "c": order.client_id,
        "S": order.side,
        "L": fill["price"],
        "l": fill["qty"],
        "t": fill["id"],
        "i": order.id,
    }


def account_event(
    account: Account, reason: str, now_ms: int, positions: list[Event], change: int = 0, symbol: str = ""
) -> Event:
    """ACCOUNT_UPDATE. `change`: of the balance, where it is no profit and no commission."""
    body: dict[str, Any] = {
        "m": reason,
        "B": [
            {"a": "USDT", "wb": money(account.wallet), "cw": money(account.cross_wallet()), "bc": money(change)},
        ],
        "P": positions,
    }
    if symbol:
        body["S"] = symbol
    return {"e": "ACCOUNT_UPDATE", "T": now_ms, "E": now_ms, "a": body}


def position_row(own: Instrument, account: Account, position: Position, mark: int) -> Event:
    """One entry of P in ACCOUNT_UPDATE."""
    return {
        "s": own.symbol,
        "pa": quantity_text(own, position.quantity),
        "ep": money(position.entry),
        "bep": money(position.entry),
        "cr": money(position.realized),
        "up": money(position.unrealized(mark)),
        "mt": "isolated" if position.index in account.isolated else "cross",
        "iw": money(position.isolated_wallet),
        "ps": position.side,
    }


def algo_event(own: Instrument, algo: Algo, now_ms: int) -> Event:
    """ALGO_UPDATE."""
    body: dict[str, Any] = {
        "caid": algo.client_id,
        "aid": algo.id,
        "at": "CONDITIONAL",
        "o": algo.kind,
        "s": own.symbol,
        "S": algo.side,
        "ps": algo.position_side,
        "f": algo.time_in_force,
        "q": quantity_text(own, algo.quantity),
        "X": algo.status,
        "ai": "",
        "tp": price_text(own, algo.trigger),
        "p": price_text(own, algo.price),
        "V": algo.stp,
        "wt": "MARK_PRICE" if algo.by_mark else "CONTRACT_PRICE",
        "pm": "NONE",
        "cp": algo.close_position,
        "pP": algo.price_protect,
        "R": algo.reduce_only,
        "tt": algo.triggered_ms,
        "gtd": algo.good_till_ms,
    }
    if algo.is_trailing:
        body |= {"AP": price_text(own, algo.activate), "cr": callback_text(algo), "ia": algo.is_activated}
    if algo.order is not None and algo.status in ("TRIGGERED", "FINISHED"):
        body |= {
            "ai": str(algo.order.id),
            "ap": money(algo.order.average),
            "aq": quantity_text(own, algo.order.filled),
            "act": algo.order.kind,
        }
    if algo.reason:
        body["rm"] = algo.reason
    return {"e": "ALGO_UPDATE", "T": now_ms, "E": now_ms, "o": body}


def callback_text(algo: Algo) -> str:
    """Callback rate in per cent."""
    return f"{algo.callback * 100 / ONE:g}" if algo.callback else ""


def leverage_event(own: Instrument, leverage: int, now_ms: int) -> Event:
    return {"e": "ACCOUNT_CONFIG_UPDATE", "E": now_ms, "T": now_ms, "ac": {"s": own.symbol, "l": leverage}}


def multi_assets_event(joined: bool, now_ms: int) -> Event:
    return {"e": "ACCOUNT_CONFIG_UPDATE", "E": now_ms, "T": now_ms, "ai": {"j": joined}}


def margin_call_event(account: Account, called: list[tuple[Instrument, Position]], mark: MarkOf, now_ms: int) -> Event:
    return {
        "e": "MARGIN_CALL",
        "E": now_ms,
        "cw": money(account.cross_wallet()),
        "p": [
            {
                "s": own.symbol,
                "ps": position.side,
                "pa": quantity_text(own, position.quantity),
                "mt": "ISOLATED" if position.index in account.isolated else "CROSSED",
                "iw": money(position.isolated_wallet),
                "mp": money(mark(position.index)),
                "up": money(position.unrealized(mark(position.index))),
                "mm": money(maintenance(position.notional(mark(position.index)))),
            }
            for own, position in called
        ],
    }


def listen_key_event(listen_key: str, now_ms: int) -> Event:
    return {"e": "listenKeyExpired", "E": now_ms, "listenKey": listen_key}
