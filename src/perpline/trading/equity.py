"""What an account is worth, minute by minute, and what a day and a person's last decision began with."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from perpline.domain.candle import MINUTE_MS
from perpline.domain.order import AccountSnapshot

DAY_MS = 86_400_000


class EquityCurve:
    """The marks that the loss limits are measured from. Times are the exchange's."""

    def __init__(self, rows: Iterable[tuple[int, Decimal]] = (), *, counts_from: int = 0) -> None:
        """`rows`: (minute, equity), oldest first. The highest equity counts from `counts_from` on, when a person set
        the mode."""
        self._day = 0
        self._day_equity: Decimal | None = None
        self._peak: Decimal | None = None
        self._worst = Decimal(0)
        self._counts_from = counts_from
        self._minute = 0
        for minute, equity in rows:
            self._see(minute, equity)
            self._minute = minute

    def see(self, snapshot: AccountSnapshot, now: int) -> dict[str, Any] | None:
        """Take the account's worth in; returns values by column of `equity`, once a minute."""
        self._see(now, snapshot.equity)
        minute = now - now % MINUTE_MS
        if minute <= self._minute:
            return None
        self._minute = minute
        return {
            "minute": minute,
            "wallet": snapshot.wallet,
            "unrealized": snapshot.unrealized_pnl,
            "equity": snapshot.equity,
        }

    def decided_by_person(self, at: int, equity: Decimal) -> None:
        """Somebody set the mode to this account's: the highest equity is counted anew."""
        self._counts_from, self._peak, self._worst = at, equity, Decimal(0)

    def day_equity(self, otherwise: Decimal) -> Decimal:
        return otherwise if self._day_equity is None else self._day_equity

    def peak_equity(self, otherwise: Decimal) -> Decimal:
        return otherwise if self._peak is None else max(self._peak, otherwise)

    @property
    def worst_drawdown_pct(self) -> Decimal:
        """The deepest that the equity has been below its highest, since a person set the mode."""
        return self._worst

    def _see(self, at: int, equity: Decimal) -> None:
        day = at // DAY_MS
        if day != self._day or self._day_equity is None:
            self._day, self._day_equity = day, equity
        if at >= self._counts_from:
            self._peak = equity if self._peak is None else max(self._peak, equity)
            if self._peak > 0:
                self._worst = max(self._worst, (self._peak - equity) / self._peak * 100)
