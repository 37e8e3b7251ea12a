"""ccxt and ccxt.pro on the simulated exchange."""

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

import pytest
import pytest_asyncio

from perpline.simulation.exchange import time_of_update
from perpline.simulation.server import SimulatedExchange

# Looked for and not imported: all tests would wait for the import when they are collected.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_spec("ccxt") is None, reason="the extra `clients` is not installed"),
]

BTC, ETH, SOL = "BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT"
MINUTE = 60_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(exchange: SimulatedExchange) -> AsyncIterator[Any]:
    from ccxt import pro

    http, ws = exchange.http_url, exchange.ws_url + "/ws"
    api = {
        "fapiPublic": http + "/fapi/v1",
        "fapiPublicV2": http + "/fapi/v2",
        "fapiPublicV3": http + "/fapi/v3",
        "fapiData": http + "/futures/data",
        # The address of the streams is "linear" in newer versions and "future" in older ones.
        "ws": {"linear": ws, "future": ws},
    }
    client = pro.binanceusdm({"enableRateLimit": False, "options": {"fetchCurrencies": False}, "urls": {"api": api}})
    client.has["fetchCurrencies"] = False
    await client.load_markets()
    yield client
    await client.close()


async def watched(method: Callable[..., Any], *args: Any, until: Callable[[Any], object] = bool) -> Any:
    """What `method(*args)` told when it told enough."""
    async with asyncio.timeout(10):
        while True:
            told = await method(*args)
            if until(told):
                return told


def numbers(rows: list[Any]) -> list[list[float]]:
    """Kline rows of the exchange as ccxt has them: open time, four prices, volume."""
    return [[row[0], *(float(text) for text in row[1:6])] for row in rows]


async def test_ccxt_knows_the_markets(exchange: SimulatedExchange, client: Any) -> None:
    market = client.market(SOL)

    assert sorted(client.symbols) == [BTC, ETH, SOL]
    assert (market["id"], market["active"], market["linear"], market["swap"]) == ("SOLUSDT", True, True, True)
    assert (market["precision"]["amount"], market["precision"]["price"]) == (0.01, 0.01)
    assert market["limits"]["cost"]["min"] == 5.0


async def test_ccxt_reads_candles_as_they_were(exchange: SimulatedExchange, client: Any) -> None:
    now = exchange.clock.now_ms()
    since = now - now % MINUTE - 700 * MINUTE

    rows = await client.fetch_ohlcv(ETH, "1m", since, 700)
    hours = await client.fetch_ohlcv(ETH, "1h", limit=30)

    assert rows == numbers(exchange.closed_candles("ETHUSDT", "1m", since, since + 700 * MINUTE))
    assert hours[:-1] == numbers(exchange.closed_candles("ETHUSDT", "1h", hours[0][0], hours[-1][0]))


async def test_ccxt_reads_candles_of_mark_index_and_premium(exchange: SimulatedExchange, client: Any) -> None:
    now = exchange.clock.now_ms()
    since = now - now % MINUTE - 5 * MINUTE
    truth = exchange.exchange.world.mark_minutes(0, since // MINUTE, 5)

    for column, price in enumerate(("mark", "index", "premiumIndex")):
        rows = await client.fetch_ohlcv(BTC, "1m", since, 5, {"price": price})
        assert [row[0] for row in rows] == list(range(since, since + 5 * MINUTE, MINUTE))
        assert [row[1:5] for row in rows] == pytest.approx(truth[:, column], abs=1e-8)


async def test_ccxt_reads_funding(exchange: SimulatedExchange, client: Any) -> None:
    history = await client.fetch_funding_rate_history(BTC, limit=4)
    settled = exchange.exchange.funding(0, 0, exchange.clock.now_ms(), 4, latest=True)
    rate = await client.fetch_funding_rate(BTC)
    rates = await client.fetch_funding_rates()
    intervals = await client.fetch_funding_intervals()

    assert [(row["timestamp"], row["fundingRate"]) for row in history] == [
        (row["fundingTime"], float(row["fundingRate"])) for row in settled
    ]
    assert rate["fundingTimestamp"] == exchange.exchange.mark(0, rate["timestamp"]).next_funding_ms
    assert rate["markPrice"] == pytest.approx(exchange.exchange.mark(0, rate["timestamp"]).mark, abs=1e-8)
    assert sorted(rates) == [BTC, ETH, SOL]
    assert intervals[BTC]["interval"] == "8h"


async def test_ccxt_reads_open_interest_and_ratios(exchange: SimulatedExchange, client: Any) -> None:
    interest = await client.fetch_open_interest(BTC)
    history = await client.fetch_open_interest_history(BTC, "5m", limit=10)
    ratios = await client.fetch_long_short_ratio_history(BTC, "5m", limit=10)
    now = exchange.clock.now_ms()
    truth = exchange.exchange.period_rows("openInterestHist", 0, "5m", history[0]["timestamp"], None, 10, now)

    assert now - 10 * MINUTE < interest["timestamp"] < now
    assert [row["openInterestAmount"] for row in history] == [float(row["sumOpenInterest"]) for row in truth]
    assert len(ratios) == 10
    assert all(0 < row["longShortRatio"] < 10 for row in ratios)


async def test_ccxt_reads_what_is_now(exchange: SimulatedExchange, client: Any) -> None:
    quotes = await client.fetch_bids_asks()
    book = await client.fetch_order_book(SOL, 20)
    tickers = await client.fetch_tickers()
    trades = await client.fetch_trades(BTC, limit=7)
    prices = await client.fetch_last_prices()
    marks = await client.fetch_mark_prices()
    time = await client.fetch_time()

    assert all(quotes[each]["bid"] < quotes[each]["ask"] for each in (BTC, ETH, SOL))
    assert (len(book["bids"]), len(book["asks"])) == (20, 20)
    assert book["bids"][0][0] < book["asks"][0][0]
    assert sorted(tickers) == sorted(prices) == sorted(marks) == [BTC, ETH, SOL]
    assert [int(trade["id"]) for trade in trades] == list(range(int(trades[0]["id"]), int(trades[0]["id"]) + 7))
    assert 0 <= exchange.clock.now_ms() - time < 10_000


async def test_ccxt_is_told_what_was_wrong(client: Any) -> None:
    import ccxt

    with pytest.raises(ccxt.BadSymbol):
        await client.fapiPublicGetKlines({"symbol": "NOPEUSDT", "interval": "1m"})
    with pytest.raises(ccxt.BadRequest):
        await client.fapiPublicGetKlines({"symbol": "BTCUSDT", "interval": "7m"})


async def test_ccxt_watches_best_bids_and_asks(exchange: SimulatedExchange, client: Any) -> None:
    told = await watched(client.watch_bids_asks, [BTC, SOL], until=lambda told: SOL in told)

    assert told[SOL]["info"]["e"] == "bookTicker"
    book = exchange.exchange.book(2, told[SOL]["info"]["T"])
    assert told[SOL]["bid"] == pytest.approx(book.bid / 10**4)
    assert told[SOL]["askVolume"] == pytest.approx(book.ask_quantity / 10**2)


async def test_ccxt_watches_candles_to_their_close(exchange: SimulatedExchange, client: Any) -> None:
    kept: dict[int, list[float]] = {}

    def enough(told: list[list[float]]) -> bool:
        kept.update((int(row[0]), row) for row in told)
        return len(kept) == 3

    await watched(client.watch_ohlcv, BTC, "1m", until=enough)
    _, first, _ = sorted(kept)

    assert [kept[first]] == numbers(exchange.closed_candles("BTCUSDT", "1m", first, first + MINUTE))


async def test_ccxt_watches_trades_mark_prices_and_tickers(exchange: SimulatedExchange, client: Any) -> None:
    trades = await watched(client.watch_trades, BTC)
    mark = await watched(client.watch_mark_price, ETH)
    marks = await watched(client.watch_mark_prices, [BTC, SOL], until=lambda told: SOL in told)
    ticker = await watched(client.watch_ticker, BTC)

    [before] = exchange.exchange.day(0, ticker["timestamp"])[:1]
    assert all(Decimal(trade["info"]["q"]) > 0 for trade in trades)
    assert mark["markPrice"] == pytest.approx(exchange.exchange.mark(1, mark["timestamp"]).mark, abs=1e-8)
    assert marks[SOL]["markPrice"] == pytest.approx(exchange.exchange.mark(2, marks[SOL]["timestamp"]).mark, abs=1e-8)
    assert ticker["open"] == pytest.approx(before / 100)


async def test_the_book_that_ccxt_keeps_is_never_crossed_nor_behind(exchange: SimulatedExchange, client: Any) -> None:
    for _ in range(15):
        kept = await watched(client.watch_order_book, BTC)
        bids, asks = kept["bids"], kept["asks"]
        book = exchange.exchange.book(0, time_of_update(kept["nonce"]))
        assert bids[0] == [book.bid / 100, book.bid_quantity / 1000]
        assert asks[0] == [book.ask / 100, book.ask_quantity / 1000]
        assert bids == sorted(bids, reverse=True)
        assert asks == sorted(asks)
