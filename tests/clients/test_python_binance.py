"""python-binance on the simulated exchange."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

import pytest
import pytest_asyncio

from perpline.simulation.exchange import Book
from perpline.simulation.server import SimulatedExchange

# It imports what its own dependency, websockets, has deprecated; there is nothing we could do about that.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:websockets:DeprecationWarning"),
    pytest.mark.skipif(find_spec("binance") is None, reason="the extra `clients` is not installed"),
]

MINUTE = 60_000
S = "BTCUSDT"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(exchange: SimulatedExchange) -> AsyncIterator[Any]:
    from binance import AsyncClient, BinanceSocketManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncClient, "FUTURES_URL", exchange.http_url + "/fapi")
        patch.setattr(AsyncClient, "FUTURES_DATA_URL", exchange.http_url + "/futures/data")
        patch.setattr(BinanceSocketManager, "FSTREAM_URL", exchange.ws_url + "/")
        client = AsyncClient("key", "secret")
        yield client
        await client.close_connection()


@pytest.fixture
def sockets(client: Any) -> Any:
    from binance import BinanceSocketManager

    return BinanceSocketManager(client)


async def received(socket: Any, count: int) -> list[Any]:
    async with asyncio.timeout(10), socket as connection:
        return [await connection.recv() for _ in range(count)]


async def test_python_binance_knows_the_contracts(exchange: SimulatedExchange, client: Any) -> None:
    info = await client.futures_exchange_info()
    served = (await client.futures_time())["serverTime"]

    assert [row["symbol"] for row in info["symbols"]] == list(exchange.symbols)
    assert 0 <= exchange.clock.now_ms() - served < 10_000
    assert await client.futures_ping() == {}


async def test_python_binance_reads_candles_as_they_were(exchange: SimulatedExchange, client: Any) -> None:
    now = exchange.clock.now_ms()
    start = now - now % MINUTE - 1200 * MINUTE

    rows = await client.futures_historical_klines(S, "1m", str(start), str(start + 1199 * MINUTE))
    recent = await client.futures_klines(symbol=S, interval="15m", limit=3)

    assert rows == exchange.closed_candles(S, "1m", start, start + 1200 * MINUTE)
    assert recent[:-1] == exchange.closed_candles(S, "15m", recent[0][0], recent[-1][0])


async def test_python_binance_reads_marks_and_funding(exchange: SimulatedExchange, client: Any) -> None:
    marks = await client.futures_mark_price()
    mark = await client.futures_mark_price(symbol=S)
    settled = await client.futures_funding_rate(symbol=S, limit=3)
    klines = [
        await client.futures_mark_price_klines(symbol=S, interval="1m", limit=2),
        await client.futures_index_price_klines(pair=S, interval="1m", limit=2),
        await client.futures_premium_index_klines(symbol=S, interval="1m", limit=2),
    ]

    assert [row["symbol"] for row in marks] == list(exchange.symbols)
    assert float(mark["markPrice"]) == pytest.approx(exchange.exchange.mark(0, mark["time"]).mark, abs=1e-8)
    assert settled == exchange.exchange.funding(0, 0, exchange.clock.now_ms(), 3, latest=True)
    assert [len(rows) for rows in klines] == [2, 2, 2]


async def test_python_binance_reads_the_five_minute_series(exchange: SimulatedExchange, client: Any) -> None:
    interest = await client.futures_open_interest(symbol=S)
    series = [
        await method(symbol=S, period="5m", limit=4)
        for method in (
            client.futures_open_interest_hist,
            client.futures_top_longshort_account_ratio,
            client.futures_top_longshort_position_ratio,
            client.futures_global_longshort_ratio,
            client.futures_taker_longshort_ratio,
        )
    ]

    assert Decimal(interest["openInterest"]) > 0
    for rows in series:
        ends = [row["timestamp"] for row in rows]
        assert ends == list(range(ends[0], ends[0] + 4 * 5 * MINUTE, 5 * MINUTE))
        assert 0 < exchange.clock.now_ms() - ends[-1] < 12 * MINUTE


async def test_python_binance_reads_book_and_trades(exchange: SimulatedExchange, client: Any) -> None:
    tickers = await client.futures_orderbook_ticker()
    book = await client.futures_order_book(symbol=S, limit=50)
    days = await client.futures_ticker()
    aggregates = await client.futures_aggregate_trades(symbol=S, limit=5)
    trades = await client.futures_recent_trades(symbol=S, limit=200)

    assert [row["symbol"] for row in tickers] == [row["symbol"] for row in days] == list(exchange.symbols)
    assert (len(book["bids"]), len(book["asks"])) == (50, 50)
    assert Decimal(book["bids"][0][0]) < Decimal(book["asks"][0][0])
    assert [row["a"] for row in aggregates] == list(range(aggregates[0]["a"], aggregates[0]["a"] + 5))
    assert [row["id"] for row in trades] == list(range(trades[0]["id"], trades[0]["id"] + 200))
    of_one = [row for row in trades if aggregates[2]["f"] <= row["id"] <= aggregates[2]["l"]]
    assert sum(Decimal(row["qty"]) for row in of_one) == Decimal(aggregates[2]["q"])


async def test_python_binance_is_told_what_was_wrong(client: Any) -> None:
    from binance.exceptions import BinanceAPIException

    for method, params, code in (
        (client.futures_klines, {"symbol": "NOPEUSDT", "interval": "1m"}, -1121),
        (client.futures_order_book, {"symbol": S, "limit": 3}, -4021),
        (client.futures_historical_trades, {"symbol": S}, -2014),
    ):
        with pytest.raises(BinanceAPIException) as refused:
            await method(**params)
        assert refused.value.code == code


async def test_python_binance_hears_best_bids_and_asks(exchange: SimulatedExchange, sockets: Any) -> None:
    for frame in await received(sockets.symbol_ticker_futures_socket(S), 3):
        data = frame["data"]
        book: Book = exchange.exchange.book(0, data["T"])
        assert (data["s"], Decimal(data["b"]), Decimal(data["a"])) == (
            S,
            Decimal(book.bid) / 100,
            Decimal(book.ask) / 100,
        )


async def test_python_binance_hears_mark_prices_trades_and_tickers(exchange: SimulatedExchange, sockets: Any) -> None:
    marks = await received(sockets.symbol_mark_price_socket(S), 3)
    arrays = await received(sockets.all_mark_price_socket(), 2)
    trades = await received(sockets.aggtrade_futures_socket(S), 5)
    [day] = await received(sockets.individual_symbol_ticker_futures_socket(S), 1)

    for frame in marks:
        truth = exchange.exchange.mark(0, frame["data"]["E"])
        assert float(frame["data"]["p"]) == pytest.approx(truth.mark, abs=1e-8)
    ours = [row["s"] for frame in arrays for row in frame["data"] if row["st"] == 1]
    assert ours == list(exchange.symbols)
    assert [frame["data"]["a"] for frame in trades] == [trades[0]["data"]["a"] + n for n in range(5)]
    assert day["data"]["e"] == "24hrTicker"


async def test_python_binance_hears_candles_of_several_streams_to_their_close(
    exchange: SimulatedExchange, sockets: Any
) -> None:
    closed: dict[str, Any] = {}
    names = ["btcusdt@kline_1m", "ethusdt@kline_1m", "btcusdt@markPrice@1s"]
    async with asyncio.timeout(10), sockets.futures_multiplex_socket(names) as connection:
        while len(closed) < 2:
            frame = await connection.recv()
            if frame["data"]["e"] == "kline" and frame["data"]["k"]["x"]:
                closed[frame["data"]["s"]] = frame["data"]["k"]
    for symbol, k in closed.items():
        [row] = exchange.closed_candles(symbol, "1m", k["t"], k["t"] + 1)
        assert [k[name] for name in "tohlcvTqnVQB"] == row
    [continuous] = await received(sockets.kline_futures_socket(S, "1m"), 1)
    assert continuous["e"] == "continuous_kline"


async def test_the_book_that_python_binance_keeps_is_never_crossed(exchange: SimulatedExchange, client: Any) -> None:
    from binance.ws.depthcache import FuturesDepthCacheManager

    async with asyncio.timeout(10), FuturesDepthCacheManager(client, S) as connection:
        for _ in range(10):
            kept = await connection.recv()
            bids, asks = kept.get_bids(), kept.get_asks()
            assert bids[0][0] < asks[0][0]
            assert len(bids) >= 10
            assert len(asks) >= 10
