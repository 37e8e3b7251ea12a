-- The tables of contracts.md, but the trading ones. Times are milliseconds UTC, t_* microseconds of our clock.
--
-- The large tables are partitioned by UTC day of their time column; the store makes the partitions (NAME_YYYYMMDD), ahead
-- of need and for any day that rows come for. There is no default partition: a row without a place is an error, not a
-- row where no query by day would look for it. Within a day the key (symbol, time) serves both uniqueness and reading.
--
-- COLLATE "C" on what is sorted: the order of bytes, as in SQLite, whatever language the database was made with.

CREATE TABLE candles_1m (
    symbol text COLLATE "C" NOT NULL,
    open_time bigint NOT NULL,
    close_time bigint NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    volume double precision NOT NULL,
    quote_volume double precision NOT NULL,
    trades bigint NOT NULL,
    taker_buy_volume double precision NOT NULL,
    taker_buy_quote_volume double precision NOT NULL,
    log_open bigint NOT NULL,
    log_high bigint NOT NULL,
    log_low bigint NOT NULL,
    log_close bigint NOT NULL,
    synthetic boolean NOT NULL,
    source text NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, open_time)
) PARTITION BY RANGE (open_time);

CREATE TABLE candles_15m (
    symbol text COLLATE "C" NOT NULL,
    open_time bigint NOT NULL,
    close_time bigint NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    volume double precision NOT NULL,
    quote_volume double precision NOT NULL,
    trades bigint NOT NULL,
    taker_buy_volume double precision NOT NULL,
    taker_buy_quote_volume double precision NOT NULL,
    log_open bigint NOT NULL,
    log_high bigint NOT NULL,
    log_low bigint NOT NULL,
    log_close bigint NOT NULL,
    synthetic boolean NOT NULL,
    source text NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, open_time)
);

CREATE TABLE candles_1h (
    symbol text COLLATE "C" NOT NULL,
    open_time bigint NOT NULL,
    close_time bigint NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    volume double precision NOT NULL,
    quote_volume double precision NOT NULL,
    trades bigint NOT NULL,
    taker_buy_volume double precision NOT NULL,
    taker_buy_quote_volume double precision NOT NULL,
    log_open bigint NOT NULL,
    log_high bigint NOT NULL,
    log_low bigint NOT NULL,
    log_close bigint NOT NULL,
    synthetic boolean NOT NULL,
    source text NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, open_time)
);

-- One row a minute of the mark price stream; not the exchange's premium index, which is premium_klines.
CREATE TABLE premium_index (
    symbol text COLLATE "C" NOT NULL,
    minute bigint NOT NULL,
    mark_price double precision NOT NULL,
    index_price double precision NOT NULL,
    funding_rate double precision NOT NULL,
    next_funding_time bigint NOT NULL,
    samples bigint NOT NULL,
    updated_at bigint NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, minute)
) PARTITION BY RANGE (minute);

CREATE TABLE mark_klines (
    symbol text COLLATE "C" NOT NULL,
    open_time bigint NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    source text NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, open_time)
) PARTITION BY RANGE (open_time);

CREATE TABLE index_klines (
    symbol text COLLATE "C" NOT NULL,
    open_time bigint NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    source text NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, open_time)
) PARTITION BY RANGE (open_time);

CREATE TABLE premium_klines (
    symbol text COLLATE "C" NOT NULL,
    open_time bigint NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    source text NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, open_time)
) PARTITION BY RANGE (open_time);

CREATE TABLE funding_rates (
    symbol text COLLATE "C" NOT NULL,
    funding_time bigint NOT NULL,
    rate double precision NOT NULL,
    mark_price double precision,
    interval_hours bigint,
    known_at bigint NOT NULL,
    PRIMARY KEY (symbol, funding_time)
);

CREATE TABLE open_interest (
    symbol text COLLATE "C" NOT NULL,
    time bigint NOT NULL,
    open_interest double precision NOT NULL,
    open_interest_value double precision, -- only the rows of kind hist_5m have it
    kind text NOT NULL,
    known_at bigint NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (symbol, kind, time, revision)
) PARTITION BY RANGE (time);

-- For ratio = taker, "long" and "short" are the volumes bought and sold.
CREATE TABLE long_short_ratio (
    symbol text COLLATE "C" NOT NULL,
    ratio text NOT NULL,
    period_end bigint NOT NULL,
    value double precision NOT NULL,
    long double precision NOT NULL,
    short double precision NOT NULL,
    known_at bigint NOT NULL,
    first_seen_at bigint NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (symbol, ratio, period_end, revision)
) PARTITION BY RANGE (period_end);

CREATE TABLE book_minutes (
    symbol text COLLATE "C" NOT NULL,
    minute bigint NOT NULL,
    bid double precision NOT NULL,
    bid_qty double precision NOT NULL,
    ask double precision NOT NULL,
    ask_qty double precision NOT NULL,
    spread_bps double precision, -- time-weighted; empty where the book stood for no measurable time
    imbalance double precision,
    order_flow_imbalance double precision,
    updates bigint NOT NULL,
    receive_lag_ms double precision,
    updated_at bigint NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (symbol, minute)
) PARTITION BY RANGE (minute);

-- What was told differently later, or by another source. Values are text, so that any field fits.
CREATE TABLE revisions (
    symbol text COLLATE "C" NOT NULL,
    series text NOT NULL,
    time bigint NOT NULL,
    field text NOT NULL,
    old text NOT NULL,
    new text NOT NULL,
    sources text NOT NULL,
    seen_at bigint NOT NULL,
    PRIMARY KEY (symbol, series, time, field, new)
);

-- A hole in a series: [from_time, to_time).
CREATE TABLE gaps (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    symbol text COLLATE "C" NOT NULL,
    series text NOT NULL,
    from_time bigint NOT NULL,
    to_time bigint NOT NULL,
    cause text NOT NULL,
    detected_at bigint NOT NULL,
    repaired_at bigint,
    repaired_by text,
    CHECK ((repaired_at IS NULL) = (repaired_by IS NULL))
);
CREATE UNIQUE INDEX gaps_open ON gaps (symbol, series, from_time, to_time) WHERE repaired_at IS NULL;

-- Exactly one row for each slot, symbol and close boundary, of whatever status. The key decides who won.
-- Those of a span of time are found by signals_by_time.
CREATE TABLE signals (
    signal_id text NOT NULL,
    slot text COLLATE "C" NOT NULL,
    symbol text COLLATE "C" NOT NULL,
    close_time bigint NOT NULL,
    side bigint NOT NULL,
    status text NOT NULL,
    detail text NOT NULL,
    model_id text NOT NULL,
    schema_hash text NOT NULL,
    label_hash text NOT NULL,
    p_raw double precision,
    p_cal double precision,
    ev_bp double precision,
    threshold double precision,
    tp_pct double precision,
    sl_pct double precision,
    horizon_s bigint,
    cost_bp double precision,
    ref_mark text,
    ref_last text,
    bid text,
    ask text,
    tp_price text,
    sl_price text,
    valid_until bigint NOT NULL,
    feat_ref text NOT NULL,
    xs_n bigint NOT NULL,
    late_mask bigint NOT NULL,
    nan_count bigint NOT NULL,
    ood_share double precision NOT NULL,
    t_candle_recv bigint NOT NULL,
    t_features bigint NOT NULL,
    t_predict bigint NOT NULL,
    engine_ver text NOT NULL,
    seq bigint NOT NULL, -- of its slot and symbol, from 1, without gaps
    t_commit bigint NOT NULL,
    PRIMARY KEY (slot, symbol, close_time)
) PARTITION BY RANGE (close_time);
CREATE INDEX signals_by_time ON signals (slot, close_time);

-- Bookkeeping: the last seq given to each slot and symbol, and its newest minute. Partitions cannot share a unique index
-- without close_time, so this is what keeps seq free of gaps; and "the newest of each symbol" need not visit every day.
CREATE TABLE signal_seqs (
    slot text COLLATE "C" NOT NULL,
    symbol text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    close_time bigint NOT NULL,
    PRIMARY KEY (slot, symbol)
) WITH (fillfactor = 50); -- every row changes every minute, and the new version shall fit beside the old one

CREATE TABLE predictions (
    slot text COLLATE "C" NOT NULL,
    symbol text COLLATE "C" NOT NULL,
    close_time bigint NOT NULL,
    model_id text NOT NULL,
    p_long_raw double precision,
    p_short_raw double precision,
    p_long double precision,
    p_short double precision,
    features bytea NOT NULL, -- float32, little endian
    feat_ref text NOT NULL,
    PRIMARY KEY (slot, symbol, close_time)
) PARTITION BY RANGE (close_time);

-- What is to be published, in the order of `id`, which is never used twice.
CREATE TABLE outbox (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    slot text COLLATE "C" NOT NULL,
    symbol text COLLATE "C" NOT NULL,
    close_time bigint NOT NULL,
    payload text NOT NULL,
    valid_until bigint NOT NULL,
    published_at bigint
);
CREATE UNIQUE INDEX outbox_once ON outbox (kind, slot, symbol, close_time) WHERE kind IN ('signal', 'close');
CREATE INDEX outbox_pending ON outbox (id) WHERE published_at IS NULL;

CREATE TABLE models (
    model_id text PRIMARY KEY,
    status text NOT NULL CHECK (status IN ('candidate', 'shadow', 'champion', 'retired')),
    created_at bigint NOT NULL,
    report text NOT NULL
);

-- Append-only: the row with the largest effective_from_close_time that has passed is in force, the last one of equals.
CREATE TABLE deployments (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    slot text COLLATE "C" NOT NULL,
    model_id text NOT NULL,
    effective_from_close_time bigint NOT NULL,
    "by" text NOT NULL
);
CREATE INDEX deployments_by_slot ON deployments (slot, effective_from_close_time);

CREATE TABLE signal_outcomes (
    signal_id text PRIMARY KEY,
    reason text NOT NULL,
    t_exit bigint NOT NULL,
    ret_net double precision NOT NULL,
    mae double precision NOT NULL,
    mfe double precision NOT NULL
);

-- Append-only: every change of the trading mode, with who, why and until when. The last row is in force.
CREATE TABLE modes (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    mode text NOT NULL CHECK (mode IN ('off', 'paper', 'live')),
    changed_at bigint NOT NULL,
    "by" text NOT NULL,
    reason text NOT NULL,
    until bigint
);
