"""Mark prices: the newest of each symbol, and one row a minute of them."""

from collections.abc import Callable
from typing import Any

from perpline.domain.candle import MINUTE_MS
from perpline.domain.market import MarkPrice

PremiumIndexRow = tuple[Any, ...]
"""symbol, minute, mark_price, index_price, funding_rate, next_funding_time, samples, updated_at, received_at."""


class MarkPriceHandler:
    """The newest mark price by symbol, and the last one of each minute as a row of `premium_index`.

    `minute` is the open time of the minute by the exchange's clock. The row is added when the first price of a later
    minute comes, and by `flush` at the end, so a minute cut in two by a restart is written twice: the later row wins.

    `on_mark` gets every price that is newer than the one before: stops and targets are watched there.
    """

    def __init__(
        self,
        add_row: Callable[[PremiumIndexRow], None],
        on_mark: Callable[[MarkPrice], None] | None = None,
        *,
        follows: Callable[[str], bool] = lambda symbol: True,
    ) -> None:
        """What comes of a symbol that is not followed (any more) is dropped."""
        self.latest: dict[str, MarkPrice] = {}
        self.repeats = 0
        """Prices that had come before, or were older than what is known: dropped."""
        self._samples: dict[str, int] = {}
        self._add_row = add_row
        self._on_mark = on_mark
        self._follows = follows

    def handle(self, mark: MarkPrice) -> None:
        known = self.latest.get(mark.symbol)
        if known is None:
            if not self._follows(mark.symbol):
                return
            self._samples[mark.symbol] = 1
        elif mark.updated_at <= known.updated_at:
            self.repeats += 1  # or overtaken on another connection
            return
        elif mark.updated_at // MINUTE_MS != known.updated_at // MINUTE_MS:
            self._add(known)
            self._samples[mark.symbol] = 1
        else:
            self._samples[mark.symbol] += 1
        self.latest[mark.symbol] = mark
        if self._on_mark is not None:
            self._on_mark(mark)

    def flush(self) -> None:
        """Add the rows of the minutes in progress."""
        for mark in self.latest.values():
            self._add(mark)

    def forget(self, symbol: str) -> None:
        """Add the row of the symbol's minute in progress, and drop everything of it."""
        if (mark := self.latest.pop(symbol, None)) is not None:
            self._add(mark)
            del self._samples[symbol]

    def _add(self, mark: MarkPrice) -> None:
        self._add_row(
            (
                mark.symbol,
                mark.updated_at - mark.updated_at % MINUTE_MS,
                mark.mark_price,
                mark.index_price,
                mark.funding_rate,
                mark.next_funding_time,
                self._samples[mark.symbol],
                mark.updated_at,
                mark.received_at,
            )
        )
