"""What an order must be like to be taken, in the exchange's numbers and words (binance.md 3.1, 4.3)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from perpline.simulation.accounts import ONE
from perpline.simulation.instruments import Instrument, decimal_text
from perpline.simulation.rest import RequestError, listed

_NUMBER: Final = re.compile(r"-?\d{1,20}(\.\d{0,20})?")


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of one contract; prices, quantities and factors in 1e-8."""

    tick: int
    min_price: int
    max_price: int
    step: int
    min_quantity: int
    max_quantity: int
    market_min_quantity: int
    market_max_quantity: int
    min_notional: int
    multiplier_up: int
    multiplier_down: int
    take_bound: int
    trigger_protect: int
    most_orders: int
    price_decimals: int
    quantity_decimals: int

    def check_price(self, price: int, name: str = "price") -> None:
        if price <= 0:
            raise RequestError(-4001 if name == "price" else -4006, f"{name.capitalize()} less than 0.")
        if price % 10 ** (8 - self.price_decimals):
            raise RequestError(-1111, "Precision is over the maximum defined for this asset.")
        if price > self.max_price:
            raise RequestError(-4002, "Price greater than max price.")
        if price < self.min_price:
            raise RequestError(-4013, "Price less than min price.")
        if (price - self.min_price) % self.tick:
            raise RequestError(-4014, "Price not increased by tick size.")

    def check_percent(self, price: int, mark: int, side: str) -> None:
        highest, lowest = mark * self.multiplier_up // ONE, mark * self.multiplier_down // ONE
        if side == "BUY" and price > highest:
            raise RequestError(-4016, f"Limit price can't be higher than {decimal_text(highest, 8)}.")
        if side == "SELL" and price < lowest:
            raise RequestError(-4024, f"Limit price can't be lower than {decimal_text(lowest, 8)}.")

    def check_quantity(self, quantity: int, *, market: bool) -> None:
        if quantity <= 0:
            raise RequestError(-4003, "Quantity less than or equal to zero.")
        if quantity % 10 ** (8 - self.quantity_decimals):
            raise RequestError(-1111, "Precision is over the maximum defined for this asset.")
        if quantity < (self.market_min_quantity if market else self.min_quantity):
            raise RequestError(-4004, "Quantity less than min quantity.")
        if quantity > (self.market_max_quantity if market else self.max_quantity):
            raise RequestError(-4005, "Quantity greater than max quantity.")
        if quantity % self.step:
            raise RequestError(-4023, "Qty not increased by step size.")

    def check_notional(self, price: int, quantity: int) -> None:
        if price * quantity < self.min_notional * ONE:
            least = f"{self.min_notional / ONE:g}"
            raise RequestError(
                -4164, f"Order's notional must be no smaller than {least} (unless you choose reduce only)."
            )


def filters_of(own: Instrument) -> Filters:
    """The filters that exchangeInfo tells of this contract."""
    row = listed(own, "TRADING", 0)
    by_type: dict[str, dict[str, Any]] = {each["filterType"]: each for each in row["filters"]}
    price, lot, market = by_type["PRICE_FILTER"], by_type["LOT_SIZE"], by_type["MARKET_LOT_SIZE"]
    percent = by_type["PERCENT_PRICE"]
    return Filters(
        tick=number(price["tickSize"]),
        min_price=number(price["minPrice"]),
        max_price=number(price["maxPrice"]),
        step=number(lot["stepSize"]),
        min_quantity=number(lot["minQty"]),
        max_quantity=number(lot["maxQty"]),
        market_min_quantity=number(market["minQty"]),
        market_max_quantity=number(market["maxQty"]),
        min_notional=number(by_type["MIN_NOTIONAL"]["notional"]),
        multiplier_up=number(percent["multiplierUp"]),
        multiplier_down=number(percent["multiplierDown"]),
        take_bound=number(row["marketTakeBound"]),
        trigger_protect=number(row["triggerProtect"]),
        most_orders=by_type["MAX_NUM_ORDERS"]["limit"],
        price_decimals=own.price_decimals,
        quantity_decimals=own.quantity_decimals,
    )


def number(text: str) -> int:
    """Decimal text in 1e-8. What is finer raises RequestError -1111, what is no number ValueError."""
    if not (text.isascii() and _NUMBER.fullmatch(text)):
        raise ValueError(f"not a decimal number: {text!r}")
    whole, _, part = text.lstrip("-").partition(".")
    part = part.rstrip("0")
    if len(part) > 8:
        raise RequestError(-1111, "Precision is over the maximum defined for this asset.")
    units = int(whole) * ONE + int(part.ljust(8, "0"))
    return -units if text.startswith("-") else units


def decimal(params: Mapping[str, str], name: str) -> int | None:
    """A decimal parameter in 1e-8, None where it was not sent."""
    text = params.get(name, "")
    if text == "":
        return None
    try:
        return number(text)
    except ValueError:
        legal = "^([0-9]{1,20})(\\.[0-9]{1,20})?$"
        raise RequestError(
            -1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'."
        ) from None


def required(params: Mapping[str, str], name: str) -> str:
    value = params.get(name, "")
    if value == "":
        raise RequestError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return value


def whole(params: Mapping[str, str], name: str) -> int | None:
    """A whole number >= 0, None where it was not sent."""
    text = params.get(name, "")
    if text == "":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise RequestError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def truth_value(params: Mapping[str, str], name: str) -> bool:
    """A parameter that is "true" or "false"; false where it was not sent."""
    text = params.get(name, "").lower()
    if text not in ("", "true", "false"):
        raise RequestError(-1100, f"Illegal characters found in parameter '{name}'; legal range is 'true|false'.")
    return text == "true"


def one_of(params: Mapping[str, str], name: str, known: tuple[str, ...], default: str | None = None) -> str:
    """A parameter that is one of a few words. `default` None: it is mandatory."""
    value = required(params, name) if default is None else params.get(name, "") or default
    if value not in known:
        code, message = _WRONG_WORD.get(name, (-1130, f"Data sent for parameter '{name}' is not valid."))
        raise RequestError(code, message)
    return value


_WRONG_WORD: Final = {
    "side": (-1117, "Invalid side."),
    "type": (-1116, "Invalid orderType."),
    "timeInForce": (-1115, "Invalid timeInForce."),
    "newOrderRespType": (-1122, "Invalid newOrderRespType."),
    "positionSide": (-1128, "Combination of optional parameters invalid."),
    "workingType": (-1106, "Parameter 'workingType' is not valid."),
}
