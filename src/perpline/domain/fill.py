"""What a trade costs and earns: fills with slippage, fees and funding (features.md 2.1).

Plain numbers in and out, so that paper trading and the backtest call these functions and the labeller compiles them.
"""

import math


def entry_fill(side: int, last: float, slip_bp: float) -> float:
    """The price paid when a position of this side is opened by a market order while trades print at `last`."""
    return last * (1.0 + side * slip_bp / 10_000.0)


def exit_fill(side: int, last: float, slip_bp: float) -> float:
    """The price got when a position of this side is closed by a market order while trades print at `last`."""
    return last * (1.0 - side * slip_bp / 10_000.0)


def last_at_level(level: float, last_close: float, mark_close: float) -> float:
    """Where trades printed when the mark price stood at `level`: levels trigger on the mark, orders fill on last.

    The distance of the two is taken at the end of the minute, the nearest instant that history knows.
    """
    return level * (last_close / mark_close)


def funding_paid(side: int, rates_at_mark: float, entry: float) -> float:
    """Funding as a share of the entry price; a long pays positive rates. `rates_at_mark` = Σ rate · mark price of the
    settlements after the entry and until the exit."""
    return side * rates_at_mark / entry


def gross_return(side: int, entry: float, exit: float) -> float:
    """Log return of the position between two prices."""
    return side * math.log(exit / entry)


def net_return(side: int, entry: float, exit: float, fee_bp: float, funding: float) -> float:
    """Log return after a fee for each side and funding (a share of the entry price); slippage is in the fills."""
    return side * math.log(exit / entry) - 2.0 * fee_bp / 10_000.0 - funding


def isolated_liquidation(side: int, entry: float, leverage: float, maintenance_pct: float) -> float:
    """The mark price at which a position with isolated margin is liquidated: where its margin, entry / leverage for
    each unit, less its loss is down to `maintenance_pct` of the value at the mark. 0 for a long that cannot be.

    Of the lowest bracket, without fees and funding paid from the margin; the exchange's own figure, where there is
    one, is the truth.
    """
    return max(entry * (1.0 - side / leverage) / (1.0 - side * maintenance_pct / 100.0), 0.0)
