"""BinanceRest against the simulated exchange, which was written from the protocol sheet without knowing it."""

import pytest

from perpline.common.errors import Refused
from perpline.domain.market import RATIOS
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger
from perpline.simulation.server import SimulatedExchange

MINUTE = 60_000


async def test_every_read_is_understood() -> None:
    async with SimulatedExchange(seed=3, symbols=3, speed=60.0) as simulated:
        clock = simulated.clock
        ledger = WeightLedger(clock)
        rest = BinanceRest(simulated.http_url, clock, ledger)
        try:
            symbols = {instrument.symbol for instrument in await rest.instruments()}
            assert symbols == set(simulated.symbols)
            assert set(await rest.quote_volumes_24h()) == symbols
            assert {mark.symbol for mark in await rest.mark_prices()} == symbols
            assert abs(await rest.measure_offset_ms()) < 10_000

            now = await rest.server_time()
            candles = await rest.candles("BTCUSDT", "1m", start=now - 10 * MINUTE, limit=99)
            assert [candle.closed for candle in candles[:9]] == [True] * 9
            truth = simulated.closed_candles("BTCUSDT", "1m", candles[0].open_time, candles[8].open_time + MINUTE)
            assert len(truth) == 9

            for series in ("mark", "index", "premium"):
                rows = await rest.price_candles(series, "BTCUSDT", limit=3)
                assert 2 <= len(rows) <= 3

            assert (await rest.open_interest("BTCUSDT")).open_interest > 0
            assert len(await rest.open_interest_hist("BTCUSDT", limit=3)) == 3
            for ratio in RATIOS:
                rows = await rest.long_short_ratios("BTCUSDT", ratio, limit=3)
                assert [row.period_end % 300_000 for row in rows] == [0, 0, 0]
            rates = await rest.funding_rates("BTCUSDT", limit=3)
            assert [rate.interval_hours for rate in rates[1:]] in ([8, 8], [4, 4], [1, 1])

            with pytest.raises(Refused) as caught:
                await rest.candles("NOUSDT", "1m")
            assert caught.value.code == -1121
            assert await rest.open_interest_hist("NOUSDT") == []
            assert ledger.requests_total > 15
        finally:
            await rest.close()
