"""What is published when: the exchange's side of the streams, driven by the market clock.

`Feed.advance` is called every few milliseconds and publishes everything that happened since the last call, in the
order it happened, second by second. It computes only what somebody listens to, except candles, which it keeps for
all contracts.
"""

import heapq
from collections.abc import Callable
from functools import partial
from typing import Final
from zlib import crc32

import numpy as np

from perpline.simulation.exchange import (
    INTERVAL_MS,
    Book,
    Candle,
    Exchange,
    flat,
    merged,
    open_of,
    scatter,
    update_at,
)
from perpline.simulation.faults import Faults
from perpline.simulation.instruments import decimal_text
from perpline.simulation.market import (
    BUY_QUOTE,
    BUY_VOLUME,
    CLOSE,
    FIRST_ID,
    HIGH,
    HOUR_MS,
    LAST_ID,
    LOW,
    MINUTE_MS,
    OPEN,
    QUOTE,
    TRADES,
    VOLUME,
    Floats,
    HourDetail,
    Ints,
)
from perpline.simulation.streams import ALL_SYMBOLS, STREAM_INTERVALS, Stream, Streams

KLINE_EVERY_MS: Final = 250
THIN_KLINE_WALL_S: Final = 0.5
THIN_BOOK_WALL_S: Final = 0.2
_MOST_BOOK_UPDATES: Final = 25
"""Of one contract in one call, so that a host that stood still does not send a burst of old books."""

_FIRST_NEARER_TICKS: Final = 200
"""The first event of a diff stream also empties so many ticks nearer than the best: a snapshot taken a moment before
may hold them."""

_Closing = tuple[int, int, int, str, int, Candle]
"""Send time, order, contract, interval, open time, candle."""


class Hour:
    """One hour of all contracts, laid out for playing: trades in order of time, marks by the second."""

    def __init__(self, details: list[HourDetail]) -> None:
        self.hour = details[0].hour
        self.details = list(details)
        self._base = details
        times = np.concatenate([detail.time_ms for detail in details])
        who = np.repeat(np.arange(len(details)), [len(detail.time_ms) for detail in details])
        # Stable, so trades of one contract keep their order.
        order = np.argsort(times, kind="stable")
        self._time: Ints = times[order]
        self._columns: list[Ints] = [
            who[order],
            *(
                np.concatenate([getattr(detail, name) for detail in details])[order]
                for name in ("price", "quantity", "buyer_is_maker", "first_id", "last_id", "aggregate_id")
            ),
        ]
        self._mark: Floats = np.stack([detail.mark for detail in details])
        self._index: Floats = np.stack([detail.index for detail in details])
        self._marks_minute = -1
        self._marks: list[list[list[float]]] = []

    def follow(self, index: int, followed: Callable[[HourDetail], HourDetail]) -> None:
        """Give this contract the prices that `followed` makes of its hour: as many trades, at the same times."""
        detail = followed(self._base[index])
        self.details[index] = detail
        who, price = self._columns[:2]
        price[who == index] = detail.price
        self._mark[index], self._index[index] = detail.mark, detail.index
        self._marks_minute = -1

    def play(self, from_ms: int, before_ms: int) -> list[tuple[int, int, int, int, bool, int, int, int]]:
        """Trades with from_ms <= time < before_ms: time, contract, price, quantity, maker, first, last, aggregate."""
        first, last = (int(at) for at in np.searchsorted(self._time, [from_ms, before_ms]))
        if first == last:
            return []
        return list(
            zip(
                self._time[first:last].tolist(),
                *(column[first:last].tolist() for column in self._columns),
                strict=True,
            )
        )

    def marks(self, second: int) -> list[list[float]]:
        """[mark, average, index, settle], each a list over contracts, at a second of this hour."""
        minute, within = divmod(second - self.hour * 3600, 60)
        if minute != self._marks_minute:
            self._marks_minute = minute
            seconds = np.arange(60)
            node = minute * 12 + seconds // 5
            part = (seconds - seconds // 5 * 5) / 5
            lines = [
                nodes[:, node] + (nodes[:, node + 1] - nodes[:, node]) * part for nodes in (self._mark, self._index)
            ]
            total = np.cumsum(self._mark[:, : minute * 12 + 12], axis=1)
            before = np.concatenate([np.zeros((len(total), 6)), total], axis=1)[:, :-6]
            count = np.minimum(np.arange(total.shape[1]) + 1, 6)
            average = ((total - before) / count)[:, node]
            settle = (np.cumsum(self._index[:, : minute * 12 + 12], axis=1)[:, node]) / (node + 1)
            for index, detail in enumerate(self.details):
                if detail.second_marks is not None and detail.second_indices is not None:
                    for line, exact in zip(lines, (detail.second_marks, detail.second_indices), strict=True):
                        line[index] = exact[minute * 60 : minute * 60 + 60]
            self._marks = [values.T.tolist() for values in (lines[0], average, lines[1], settle)]
        return [column[within] for column in self._marks]


class Feed:
    """Publishes the streams of one exchange."""

    def __init__(
        self,
        exchange: Exchange,
        streams: Streams,
        faults: Faults,
        *,
        thin: bool,
        wall_s: Callable[[], float],
    ) -> None:
        self._exchange = exchange
        self._streams = streams
        self._faults = faults
        self._thin = thin
        self._wall_s = wall_s
        self._hours: dict[int, Hour] = {}
        count = len(exchange.symbols)
        self._forming: list[Candle | None] = [None] * count
        self._last_close: list[int] = [0] * count
        self._bases: list[dict[str, Candle]] = [{} for _ in range(count)]
        self._traded: set[int] = set()
        self._kline_sent: list[tuple[int, float]] = [(0, 0.0)] * count
        self._book_cell: list[int] = [0] * count
        self._book_wall_s: list[float] = [0.0] * count
        self._closings: list[_Closing] = []
        self._closing_number = 0
        self._status: dict[int, str] = {}
        self.traded: Callable[[int, int, int, bool], None] | None = None
        """Told of every trade that is published: contract, price, quantity, whether the buyer was the maker."""
        self.now_ms = 0

    @property
    def loaded_until_ms(self) -> int:
        """`advance` may be called with times before this one."""
        return (max(self._hours) + 1) * HOUR_MS

    def add_hour(self, hour: Hour) -> None:
        """Make one more hour playable; hours that are over are dropped."""
        self._hours[hour.hour] = hour
        for index in self._exchange.courses:
            hour.follow(index, partial(self._exchange.followed, index))
        for old in [number for number in self._hours if number < self.now_ms // HOUR_MS - 1]:
            del self._hours[old]

    def follow(self, index: int) -> None:
        """Take up the script that this contract has been given; nothing that was published changes."""
        for hour in self._hours.values():
            hour.follow(index, partial(self._exchange.followed, index))

    def begin(self, now_ms: int, today: list[Ints]) -> None:
        """Start at this time. `today`: for each contract its minutes since midnight UTC, up to the running one."""
        self.now_ms = now_ms
        midnight = open_of("1d", now_ms)
        for index, rows in enumerate(today):
            for position, candle in enumerate(rows.tolist()):
                self._add_minute(index, midnight + position * MINUTE_MS, candle)
        if len(today[0]) == 0:
            for index in range(len(today)):
                self._last_close[index] = int(self._exchange.minutes(index, now_ms // MINUTE_MS - 1, 1)[0, CLOSE])
        self._play_trades(now_ms // MINUTE_MS * MINUTE_MS, now_ms, publish=False)

    def advance(self, now_ms: int) -> None:
        """Publish what happened between the last call and `now_ms`."""
        at = self.now_ms
        while at < now_ms:
            until = min(now_ms, (at // 1000 + 1) * 1000)
            self._play_trades(at, until, publish=True)
            if until % MINUTE_MS == 0:
                self._close_minute(until)
            self._send_closings(until)
            if until % 1000 == 0:
                self._send_marks(until)
                if until % 5000 == 0:
                    self._send_all_books(until)
            at = until
        self.now_ms = at
        wall_s = self._wall_s()
        self._send_forming(now_ms, wall_s)
        self._send_books(now_ms, wall_s)
        self._send_depths(now_ms, wall_s)

    def last(self, index: int) -> float:
        """The price of the last trade that was published."""
        forming = self._forming[index]
        units = self._last_close[index] if forming is None else forming[CLOSE]
        return units / float(10 ** self._exchange.instruments[index].price_decimals)

    def mark(self, index: int) -> float:
        """The mark price of this second, as it was published."""
        return self._hours[self.now_ms // HOUR_MS].marks(self.now_ms // 1000)[0][index]

    def tickers_due(self, now_ms: int) -> list[Stream]:
        """The 24-hour ticker streams that should be sent now; the caller computes and hands them back."""
        due = []
        wall_s = self._wall_s()
        for kind in ("miniTicker", "ticker"):
            for streams in self._streams.wanted_kind(kind).values():
                due += [stream for stream in streams if self._is_due(stream, now_ms, wall_s, THIN_KLINE_WALL_S)]
        return due

    def send_ticker(self, stream: Stream, days: dict[int, Candle], now_ms: int) -> None:
        if stream.index != ALL_SYMBOLS:
            self._streams.publish(stream, self._ticker(stream.kind, stream.index, days[stream.index], now_ms).encode())
        else:
            rows = [self._ticker(stream.kind, index, day, now_ms) for index, day in days.items()]
            self._streams.publish(stream, f"[{','.join(rows)}]".encode())

    # ---- trades and candles

    def _play_trades(self, from_ms: int, before_ms: int, *, publish: bool) -> None:
        hour = self._hours[from_ms // HOUR_MS]
        silent = self._exchange.without_trades(from_ms // MINUTE_MS)
        for time_ms, index, price, quantity, maker, first_id, last_id, aggregate_id in hour.play(from_ms, before_ms):
            if index in silent:
                continue
            forming = self._forming[index]
            quote = price * quantity
            if forming is None:
                self._forming[index] = forming = [price, price, price, price, 0, 0, 0, 0, 0, first_id, last_id]
            elif price > forming[HIGH]:
                forming[HIGH] = price
            elif price < forming[LOW]:
                forming[LOW] = price
            forming[CLOSE] = price
            forming[VOLUME] += quantity
            forming[QUOTE] += quote
            forming[TRADES] += last_id - first_id + 1
            if not maker:
                forming[BUY_VOLUME] += quantity
                forming[BUY_QUOTE] += quote
            forming[LAST_ID] = last_id
            if not publish:
                continue
            self._traded.add(index)
            if self.traded is not None:
                self.traded(index, price, quantity, maker)
            own = self._exchange.instruments[index]
            for stream in self._streams.wanted("aggTrade", index):
                text = decimal_text(quantity, own.quantity_decimals)
                payload = (
                    f'{{"e":"aggTrade","E":{before_ms},"a":{aggregate_id},"s":"{own.symbol}",'
                    f'"p":"{decimal_text(price, own.price_decimals)}","q":"{text}","nq":"{text}",'
                    f'"f":{first_id},"l":{last_id},"T":{time_ms},"m":{"true" if maker else "false"},"st":1}}'
                )
                self._streams.publish(stream, payload.encode())
            for stream in self._streams.wanted("trade", index):
                each, left = divmod(quantity, last_id - first_id + 1)
                for trade_id in range(first_id, last_id + 1):
                    part = each + left if trade_id == last_id else each
                    payload = (
                        f'{{"e":"trade","E":{before_ms},"T":{time_ms},"s":"{own.symbol}","t":{trade_id},'
                        f'"p":"{decimal_text(price, own.price_decimals)}",'
                        f'"q":"{decimal_text(part, own.quantity_decimals)}",'
                        f'"X":"MARKET","m":{"true" if maker else "false"},"st":1}}'
                    )
                    self._streams.publish(stream, payload.encode())

    def _close_minute(self, end_ms: int) -> None:
        open_ms = end_ms - MINUTE_MS
        for index, forming in enumerate(self._forming):
            candle = flat(self._last_close[index]) if forming is None else forming
            self._forming[index] = None
            if not self._exchange.is_traded(index, open_ms):
                self._bases[index].clear()
                continue
            for interval, whole in self._add_minute(index, open_ms, candle):
                self._schedule_closing(index, interval, end_ms, whole)
        if not self._exchange.is_ordinary:
            self._send_contract_info(end_ms)
        # A frame of the minute that is over would be older than its closing frame.
        self._traded.clear()

    def _add_minute(self, index: int, open_ms: int, candle: Candle) -> list[tuple[str, Candle]]:
        """Join a closed minute to all longer candles; returns those that closed with it."""
        self._last_close[index] = candle[CLOSE]
        bases = self._bases[index]
        closed = []
        end_ms = open_ms + MINUTE_MS
        for interval in STREAM_INTERVALS:
            base = bases.get(interval)
            whole = candle if base is None else merged(base, candle)
            if end_ms % INTERVAL_MS[interval] == 0:
                bases.pop(interval, None)
                closed.append((interval, whole))
            else:
                bases[interval] = whole
        return closed

    def _schedule_closing(self, index: int, interval: str, end_ms: int, candle: Candle) -> None:
        seed = self._exchange.world.seed

        def draw(purpose: str) -> int:
            return scatter(crc32(f"{seed} {purpose} {interval}".encode()) * 65_537 + index, end_ms)

        empty = candle[TRADES] == 0
        later = self._faults.closing_delay_ms(draw, empty)
        if later is None or (empty and self._exchange.closes_silently(index, end_ms // MINUTE_MS - 1)):
            return
        send_ms = end_ms + 100 + draw("closing delay") % 1901 + later
        self._closing_number += 1
        open_ms = end_ms - INTERVAL_MS[interval]
        heapq.heappush(self._closings, (send_ms, self._closing_number, index, interval, open_ms, candle))

    def _send_closings(self, until_ms: int) -> None:
        while self._closings and self._closings[0][0] <= until_ms:
            send_ms, _, index, interval, open_ms, candle = heapq.heappop(self._closings)
            for kind in ("kline", "continuousKline"):
                for stream in self._streams.wanted(kind, index):
                    if stream.interval == interval:
                        payload = self._kline(kind, index, interval, open_ms, candle, send_ms, closed=True)
                        stream.last_closing = payload
                        self._streams.publish(stream, payload, f"{kind}_closed")

    def _send_forming(self, now_ms: int, wall_s: float) -> None:
        sent = []
        for index in self._traded:
            last_ms, last_wall_s = self._kline_sent[index]
            if now_ms - last_ms < KLINE_EVERY_MS or (self._thin and wall_s - last_wall_s < THIN_KLINE_WALL_S):
                continue
            sent.append(index)
            self._kline_sent[index] = (now_ms, wall_s)
            forming = self._forming[index]
            if forming is None:
                continue
            for kind in ("kline", "continuousKline"):
                for stream in self._streams.wanted(kind, index):
                    base = self._bases[index].get(stream.interval)
                    candle = forming if base is None else merged(base, forming)
                    open_ms = open_of(stream.interval, now_ms)
                    payload = self._kline(kind, index, stream.interval, open_ms, candle, now_ms, closed=False)
                    self._streams.publish(stream, payload)
        self._traded.difference_update(sent)

    def _kline(
        self, kind: str, index: int, interval: str, open_ms: int, candle: Candle, event_ms: int, *, closed: bool
    ) -> bytes:
        own = self._exchange.instruments[index]
        price, quantity = own.price_decimals, own.quantity_decimals
        first, last = candle[FIRST_ID], candle[LAST_ID]
        if kind == "kline":
            head = f'{{"e":"kline","E":{event_ms},"s":"{own.symbol}","k":{{'
            name = f'"s":"{own.symbol}", '
        else:
            head = f'{{"e":"continuous_kline","E":{event_ms},"ps":"{own.symbol}","ct":"PERPETUAL","k":{{'
            name = ""
            # Here f and l are update ids.
            first, last = update_at(open_ms), update_at(event_ms)
        # The blanks after commas inside "k" are on the wire of the exchange too.
        return (
            f'{head}"t":{open_ms}, "T":{open_ms + INTERVAL_MS[interval] - 1}, {name}"i":"{interval}", '
            f'"f":{first}, "L":{last}, "o":"{decimal_text(candle[OPEN], price)}", '
            f'"c":"{decimal_text(candle[CLOSE], price)}", "h":"{decimal_text(candle[HIGH], price)}", '
            f'"l":"{decimal_text(candle[LOW], price)}", "v":"{decimal_text(candle[VOLUME], quantity)}", '
            f'"n":{candle[TRADES]}, "x":{"true" if closed else "false"}, '
            f'"q":"{decimal_text(candle[QUOTE], price + quantity)}", '
            f'"V":"{decimal_text(candle[BUY_VOLUME], quantity)}", '
            f'"Q":"{decimal_text(candle[BUY_QUOTE], price + quantity)}", "B":"0"}}}}'
        ).encode()

    # ---- marks

    def _send_marks(self, at_ms: int) -> None:
        wanted = self._streams.wanted_kind("markPrice")
        if not wanted:
            return
        second = at_ms // 1000
        values = self._hours[at_ms // HOUR_MS].marks(second)
        funding = self._exchange.expected_funding(at_ms // HOUR_MS)
        for index, streams in wanted.items():
            due = [stream for stream in streams if at_ms % stream.period_ms == 0]
            if not due:
                continue
            if index != ALL_SYMBOLS and not self._exchange.is_traded(index, at_ms):
                continue
            if index != ALL_SYMBOLS:
                payload = self._mark(index, values, funding[index], at_ms).encode()
                for stream in due:
                    self._streams.publish(stream, payload)
                continue
            # A delisted contract goes on without funding (binance.md 2).
            rows = [
                self._mark(each, values, funding[each] if self._exchange.is_traded(each, at_ms) else (0.0, 0), at_ms)
                for each in range(len(self._exchange.symbols))
                if self._exchange.is_known(each, at_ms)
            ]
            # Some contracts come in a message of their own, and one row of the other market (st 2) among them.
            split = max(1, len(rows) * 3 // 4)
            foreign = rows[0].replace('USDT"', 'USD_PERP"').replace('"st":1', '"st":2')
            for stream in due:
                self._streams.publish(stream, f"[{','.join(rows[:split])}]".encode())
                self._streams.publish(stream, f"[{','.join([*rows[split:], foreign])}]".encode())

    def _mark(self, index: int, values: list[list[float]], funding: tuple[float, int], at_ms: int) -> str:
        return (
            f'{{"e":"markPriceUpdate","E":{at_ms},"s":"{self._exchange.symbols[index]}","p":"{values[0][index]:.8f}",'
            f'"ap":"{values[1][index]:.8f}","P":"{values[3][index]:.8f}","i":"{values[2][index]:.8f}",'
            f'"r":"{funding[0]:.8f}","T":{funding[1]},"st":1}}'
        )

    # ---- book

    def _send_books(self, now_ms: int, wall_s: float) -> None:
        exchange = self._exchange
        for index, streams in self._streams.wanted_kind("bookTicker").items():
            if index == ALL_SYMBOLS or not self._book_moves(index, now_ms):
                continue
            if self._thin:
                if wall_s - self._book_wall_s[index] < THIN_BOOK_WALL_S:
                    continue
                self._book_wall_s[index] = wall_s
            period = exchange.book_period_ms(index)
            cell = now_ms // period
            last = self._book_cell[index]
            if last == cell:
                continue
            self._book_cell[index] = cell
            first = cell if self._thin else max(last + 1, cell - _MOST_BOOK_UPDATES)
            for each in range(first, cell + 1):
                # The book before this instant; the last one of a cell is known when the cell is over.
                book = exchange.book(index, each * period - 1, self.detail(index, each * period - 1))
                payload = self._book_ticker(index, book, now_ms)
                for stream in streams:
                    self._streams.publish(stream, payload)

    def _send_all_books(self, at_ms: int) -> None:
        for stream in self._streams.wanted("bookTicker", ALL_SYMBOLS):
            for index in range(len(self._exchange.symbols)):
                if not self._book_moves(index, at_ms):
                    continue
                book = self._exchange.book(index, at_ms - 1, self.detail(index, at_ms - 1))
                self._streams.publish(stream, self._book_ticker(index, book, at_ms))

    def _book_ticker(self, index: int, book: Book, event_ms: int) -> bytes:
        own = self._exchange.instruments[index]
        price, quantity = own.price_decimals, own.quantity_decimals
        return (
            f'{{"e":"bookTicker","u":{book.update_id},"s":"{own.symbol}","ps":"{own.symbol}",'
            f'"b":"{decimal_text(book.bid, price)}","B":"{decimal_text(book.bid_quantity, quantity)}",'
            f'"a":"{decimal_text(book.ask, price)}","A":"{decimal_text(book.ask_quantity, quantity)}",'
            f'"T":{book.time_ms},"E":{event_ms},"st":1}}'
        ).encode()

    def _send_depths(self, now_ms: int, wall_s: float) -> None:
        for kind in ("depth", "depthDiff"):
            for index, streams in self._streams.wanted_kind(kind).items():
                for stream in streams:
                    if self._book_moves(index, now_ms) and self._is_due(stream, now_ms, wall_s, THIN_BOOK_WALL_S):
                        self._send_depth(stream, index, now_ms)

    def _send_depth(self, stream: Stream, index: int, now_ms: int) -> None:
        own = self._exchange.instruments[index]
        detail = self.detail(index, now_ms)
        book, bid_levels, ask_levels = self._exchange.depth(index, stream.levels or 60, now_ms, detail)
        bids, asks = dict(bid_levels), dict(ask_levels)
        before = stream.shown
        if before is not None and before[0] >= book.update_id:
            return
        stream.shown = (book.update_id, bids, asks)
        if before is None:
            # Reaches back a minute, so that it joins a snapshot that was taken just before the first event.
            before = (book.update_id - 40 * MINUTE_MS, {}, {})
        if not stream.levels:
            tick = own.tick_units
            bids, asks = _difference(before[1], bids, -tick), _difference(before[2], asks, tick)
        sides = [
            ",".join(
                f'["{decimal_text(price, own.price_decimals)}","{decimal_text(quantity, own.quantity_decimals)}"]'
                for price, quantity in levels.items()
            )
            for levels in (bids, asks)
        ]
        payload = (
            f'{{"e":"depthUpdate","E":{now_ms},"T":{book.time_ms},"s":"{own.symbol}","ps":"{own.symbol}",'
            f'"U":{before[0] + 1},"u":{book.update_id},"pu":{before[0]},"b":[{sides[0]}],"a":[{sides[1]}],"st":1}}'
        )
        self._streams.publish(stream, payload.encode())

    def _book_moves(self, index: int, now_ms: int) -> bool:
        exchange = self._exchange
        return exchange.is_ordinary or (exchange.is_traded(index, now_ms) and not exchange.is_halted(index, now_ms))

    def detail(self, index: int, time_ms: int) -> HourDetail | None:
        """The hour that holds this time, None where it is not loaded."""
        hour = self._hours.get(time_ms // HOUR_MS)
        return None if hour is None else hour.details[index]

    # ---- what is listed

    def _send_contract_info(self, at_ms: int) -> None:
        """Tell of each contract that has been listed, delisted, halted or resumed since it was looked at last."""
        for index, symbol in enumerate(self._exchange.symbols):
            if not self._exchange.is_known(index, at_ms):
                continue
            status = self._exchange.status(index, at_ms)
            before = self._status.get(index)
            self._status[index] = status
            if status == before or (before is None and at_ms != self._exchange.onboard_ms(index)):
                continue
            payload = (
                f'{{"e":"contractInfo","E":{at_ms},"s":"{symbol}","ct":"PERPETUAL","dt":4133404800000,'
                f'"ot":{self._exchange.onboard_ms(index)},"cs":"{status}","st":1}}'
            ).encode()
            for stream in self._streams.wanted("contractInfo", ALL_SYMBOLS):
                self._streams.publish(stream, payload)

    # ---- 24-hour tickers

    def _ticker(self, kind: str, index: int, day: Candle, now_ms: int) -> str:
        own = self._exchange.instruments[index]
        price, quantity = own.price_decimals, own.quantity_decimals
        values = (
            f'"c":"{decimal_text(day[CLOSE], price)}","o":"{decimal_text(day[OPEN], price)}",'
            f'"h":"{decimal_text(day[HIGH], price)}","l":"{decimal_text(day[LOW], price)}",'
            f'"v":"{decimal_text(day[VOLUME], quantity)}","q":"{decimal_text(day[QUOTE], price + quantity)}"'
        )
        tail = f'"ps":"{own.symbol}","st":1}}'
        if kind == "miniTicker":
            return f'{{"e":"24hrMiniTicker","E":{now_ms},"s":"{own.symbol}",{values},{tail}'
        moved = day[CLOSE] - day[OPEN]
        mean = day[QUOTE] // max(1, day[VOLUME])
        return (
            f'{{"e":"24hrTicker","E":{now_ms},"s":"{own.symbol}","p":"{decimal_text(moved, price)}",'
            f'"P":"{100 * moved / day[OPEN]:.3f}","w":"{decimal_text(mean, price)}",{values},'
            f'"Q":"{own.step_text}","O":{now_ms // MINUTE_MS * MINUTE_MS - 1439 * MINUTE_MS},"C":{now_ms},'
            f'"F":{day[FIRST_ID]},"L":{day[LAST_ID]},"n":{day[TRADES]},{tail}'
        )

    def _is_due(self, stream: Stream, now_ms: int, wall_s: float, thin_wall_s: float) -> bool:
        if now_ms - stream.sent_ms < stream.period_ms or (self._thin and wall_s - stream.sent_wall_s < thin_wall_s):
            return False
        stream.sent_ms, stream.sent_wall_s = now_ms, wall_s
        return True


def _difference(before: dict[int, int], after: dict[int, int], away: int) -> dict[int, int]:
    """Levels that changed, 0 for those that are gone. `away` is one tick in the direction away from the market.

    Levels beyond the window are not gone, only out of sight. Empty ticks that come into sight are told as gone: a
    listener may know an older level there, from a snapshot or from before it went out of sight.
    """
    changes = {price: quantity for price, quantity in after.items() if before.get(price) != quantity}
    ends = max if away > 0 else min
    furthest = ends(after)
    for price in before:
        if price not in after and (furthest - price) * away >= 0:
            changes[price] = 0
    if before:
        unseen = range(ends(before) + away, furthest, away)
    else:
        best = next(iter(after))
        unseen = range(best - _FIRST_NEARER_TICKS * away, furthest, away)
    for price in unseen:
        if price not in after and price > 0:
            changes[price] = 0
    return changes
