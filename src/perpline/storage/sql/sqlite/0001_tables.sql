-- The tables of contracts.md, but the trading ones. Times are milliseconds UTC, t_* microseconds of our clock.
--
-- Large tables are keyed by (time, symbol) and indexed by (symbol, time): rows arrive by time, so the key grows at its
-- end, which inserts about four times as fast as the other way round (measured with 600 symbols a minute). Uniqueness
-- does not care for the order. STRICT, because a text in a number column is a bug that should be heard.

CREATE TABLE candles_1m (
    symbol TEXT NOT NULL,
    open_time INTEGER NOT NULL,
    close_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    trades INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    log_open INTEGER NOT NULL,
    log_high INTEGER NOT NULL,
    log_low INTEGER NOT NULL,
    log_close INTEGER NOT NULL,
    synthetic INTEGER NOT NULL,
    source TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (open_time, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX candles_1m_by_symbol ON candles_1m (symbol, open_time);

CREATE TABLE candles_15m (
    symbol TEXT NOT NULL,
    open_time INTEGER NOT NULL,
    close_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    trades INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    log_open INTEGER NOT NULL,
    log_high INTEGER NOT NULL,
    log_low INTEGER NOT NULL,
    log_close INTEGER NOT NULL,
    synthetic INTEGER NOT NULL,
    source TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (open_time, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX candles_15m_by_symbol ON candles_15m (symbol, open_time);

CREATE TABLE candles_1h (
    symbol TEXT NOT NULL,
    open_time INTEGER NOT NULL,
    close_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    trades INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    log_open INTEGER NOT NULL,
    log_high INTEGER NOT NULL,
    log_low INTEGER NOT NULL,
    log_close INTEGER NOT NULL,
    synthetic INTEGER NOT NULL,
    source TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (open_time, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX candles_1h_by_symbol ON candles_1h (symbol, open_time);

-- One row a minute of the mark price stream; not the exchange's premium index, which is premium_klines.
CREATE TABLE premium_index (
    symbol TEXT NOT NULL,
    minute INTEGER NOT NULL,
    mark_price REAL NOT NULL,
    index_price REAL NOT NULL,
    funding_rate REAL NOT NULL,
    next_funding_time INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (minute, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX premium_index_by_symbol ON premium_index (symbol, minute);

CREATE TABLE mark_klines (
    symbol TEXT NOT NULL,
    open_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    source TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (open_time, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX mark_klines_by_symbol ON mark_klines (symbol, open_time);

CREATE TABLE index_klines (
    symbol TEXT NOT NULL,
    open_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    source TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (open_time, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_klines_by_symbol ON index_klines (symbol, open_time);

CREATE TABLE premium_klines (
    symbol TEXT NOT NULL,
    open_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    source TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (open_time, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX premium_klines_by_symbol ON premium_klines (symbol, open_time);

CREATE TABLE funding_rates (
    symbol TEXT NOT NULL,
    funding_time INTEGER NOT NULL,
    rate REAL NOT NULL,
    mark_price REAL,
    interval_hours INTEGER,
    known_at INTEGER NOT NULL,
    PRIMARY KEY (symbol, funding_time)
) STRICT, WITHOUT ROWID;

CREATE TABLE open_interest (
    symbol TEXT NOT NULL,
    time INTEGER NOT NULL,
    open_interest REAL NOT NULL,
    open_interest_value REAL, -- only the rows of kind hist_5m have it
    kind TEXT NOT NULL,
    known_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (time, symbol, kind, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX open_interest_by_symbol ON open_interest (symbol, kind, time);

-- For ratio = taker, "long" and "short" are the volumes bought and sold.
CREATE TABLE long_short_ratio (
    symbol TEXT NOT NULL,
    ratio TEXT NOT NULL,
    period_end INTEGER NOT NULL,
    value REAL NOT NULL,
    long REAL NOT NULL,
    short REAL NOT NULL,
    known_at INTEGER NOT NULL,
    first_seen_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (period_end, symbol, ratio, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX long_short_ratio_by_symbol ON long_short_ratio (symbol, ratio, period_end);

CREATE TABLE book_minutes (
    symbol TEXT NOT NULL,
    minute INTEGER NOT NULL,
    bid REAL NOT NULL,
    bid_qty REAL NOT NULL,
    ask REAL NOT NULL,
    ask_qty REAL NOT NULL,
    spread_bps REAL, -- time-weighted; empty where the book stood for no measurable time
    imbalance REAL,
    order_flow_imbalance REAL,
    updates INTEGER NOT NULL,
    receive_lag_ms REAL,
    updated_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (minute, symbol)
) STRICT, WITHOUT ROWID;
CREATE INDEX book_minutes_by_symbol ON book_minutes (symbol, minute);

-- What was told differently later, or by another source. Values are text, so that any field fits.
CREATE TABLE revisions (
    symbol TEXT NOT NULL,
    series TEXT NOT NULL,
    time INTEGER NOT NULL,
    field TEXT NOT NULL,
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    sources TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (symbol, series, time, field, new)
) STRICT, WITHOUT ROWID;

-- A hole in a series: [from_time, to_time).
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    symbol TEXT NOT NULL,
    series TEXT NOT NULL,
    from_time INTEGER NOT NULL,
    to_time INTEGER NOT NULL,
    cause TEXT NOT NULL,
    detected_at INTEGER NOT NULL,
    repaired_at INTEGER,
    repaired_by TEXT,
    CHECK ((repaired_at IS NULL) = (repaired_by IS NULL))
) STRICT;
CREATE UNIQUE INDEX gaps_open ON gaps (symbol, series, from_time, to_time) WHERE repaired_at IS NULL;

-- Exactly one row for each slot, symbol and close boundary, of whatever status. The key decides who won.
-- It also answers "the latest of a symbol"; those of a span of time are found by signals_by_time.
CREATE TABLE signals (
    signal_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    symbol TEXT NOT NULL,
    close_time INTEGER NOT NULL,
    side INTEGER NOT NULL,
    status TEXT NOT NULL,
    detail TEXT NOT NULL,
    model_id TEXT NOT NULL,
    schema_hash TEXT NOT NULL,
    label_hash TEXT NOT NULL,
    p_raw REAL,
    p_cal REAL,
    ev_bp REAL,
    threshold REAL,
    tp_pct REAL,
    sl_pct REAL,
    horizon_s INTEGER,
    cost_bp REAL,
    ref_mark TEXT,
    ref_last TEXT,
    bid TEXT,
    ask TEXT,
    tp_price TEXT,
    sl_price TEXT,
    valid_until INTEGER NOT NULL,
    feat_ref TEXT NOT NULL,
    xs_n INTEGER NOT NULL,
    late_mask INTEGER NOT NULL,
    nan_count INTEGER NOT NULL,
    ood_share REAL NOT NULL,
    t_candle_recv INTEGER NOT NULL,
    t_features INTEGER NOT NULL,
    t_predict INTEGER NOT NULL,
    engine_ver TEXT NOT NULL,
    seq INTEGER NOT NULL, -- of its slot and symbol, from 1, without gaps
    t_commit INTEGER NOT NULL,
    PRIMARY KEY (slot, symbol, close_time),
    UNIQUE (slot, symbol, seq)
) STRICT;
CREATE INDEX signals_by_time ON signals (slot, close_time);

CREATE TABLE predictions (
    slot TEXT NOT NULL,
    symbol TEXT NOT NULL,
    close_time INTEGER NOT NULL,
    model_id TEXT NOT NULL,
    p_long_raw REAL,
    p_short_raw REAL,
    p_long REAL,
    p_short REAL,
    features BLOB NOT NULL, -- float32, little endian
    feat_ref TEXT NOT NULL,
    PRIMARY KEY (close_time, symbol, slot)
) STRICT;

-- What is to be published, in the order of `id`, which is never used twice.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    slot TEXT NOT NULL,
    symbol TEXT NOT NULL,
    close_time INTEGER NOT NULL,
    payload TEXT NOT NULL,
    valid_until INTEGER NOT NULL,
    published_at INTEGER
) STRICT;
CREATE UNIQUE INDEX outbox_once ON outbox (kind, slot, symbol, close_time) WHERE kind IN ('signal', 'close');
CREATE INDEX outbox_pending ON outbox (id) WHERE published_at IS NULL;

CREATE TABLE models (
    model_id TEXT PRIMARY KEY NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('candidate', 'shadow', 'champion', 'retired')),
    created_at INTEGER NOT NULL,
    report TEXT NOT NULL
) STRICT;

-- Append-only: the row with the largest effective_from_close_time that has passed is in force, the last one of equals.
CREATE TABLE deployments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    slot TEXT NOT NULL,
    model_id TEXT NOT NULL,
    effective_from_close_time INTEGER NOT NULL,
    "by" TEXT NOT NULL
) STRICT;
CREATE INDEX deployments_by_slot ON deployments (slot, effective_from_close_time);

CREATE TABLE signal_outcomes (
    signal_id TEXT PRIMARY KEY NOT NULL,
    reason TEXT NOT NULL,
    t_exit INTEGER NOT NULL,
    ret_net REAL NOT NULL,
    mae REAL NOT NULL,
    mfe REAL NOT NULL
) STRICT;

-- Append-only: every change of the trading mode, with who, why and until when. The last row is in force.
CREATE TABLE modes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    mode TEXT NOT NULL CHECK (mode IN ('off', 'paper', 'live')),
    changed_at INTEGER NOT NULL,
    "by" TEXT NOT NULL,
    reason TEXT NOT NULL,
    until INTEGER
) STRICT;
