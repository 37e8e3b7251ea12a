-- What a file does not tell is empty here: a zero would be a statement about the market. Candle files of others may hold
-- prices and the volume in base units and nothing else, and the exchange's metrics tell ratios without their two sides.

ALTER TABLE candles_1m ALTER COLUMN quote_volume DROP NOT NULL;
ALTER TABLE candles_1m ALTER COLUMN trades DROP NOT NULL;
ALTER TABLE candles_1m ALTER COLUMN taker_buy_volume DROP NOT NULL;
ALTER TABLE candles_1m ALTER COLUMN taker_buy_quote_volume DROP NOT NULL;
ALTER TABLE candles_15m ALTER COLUMN quote_volume DROP NOT NULL;
ALTER TABLE candles_15m ALTER COLUMN trades DROP NOT NULL;
ALTER TABLE candles_15m ALTER COLUMN taker_buy_volume DROP NOT NULL;
ALTER TABLE candles_15m ALTER COLUMN taker_buy_quote_volume DROP NOT NULL;
ALTER TABLE candles_1h ALTER COLUMN quote_volume DROP NOT NULL;
ALTER TABLE candles_1h ALTER COLUMN trades DROP NOT NULL;
ALTER TABLE candles_1h ALTER COLUMN taker_buy_volume DROP NOT NULL;
ALTER TABLE candles_1h ALTER COLUMN taker_buy_quote_volume DROP NOT NULL;
ALTER TABLE long_short_ratio ALTER COLUMN long DROP NOT NULL;
ALTER TABLE long_short_ratio ALTER COLUMN short DROP NOT NULL;
