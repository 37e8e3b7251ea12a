-- What trading keeps. Money, prices and sizes are decimal text, exactly as they were sent or told; times are milliseconds
-- UTC. `account` is paper or live. Nothing here is large, so nothing is partitioned.

-- A change of mode may be about one symbol (empty: about all), and says what becomes of open positions.
ALTER TABLE modes ADD COLUMN symbol TEXT NOT NULL DEFAULT '';
ALTER TABLE modes ADD COLUMN positions TEXT NOT NULL DEFAULT 'keep' CHECK (positions IN ('keep', 'protect', 'flatten'));

-- Ordinary and conditional orders, by the id that we chose before sending. A stop's order_id is its algo id, and
-- child_order_id the ordinary order that it became.
CREATE TABLE orders (
    account TEXT NOT NULL,
    client_id TEXT NOT NULL,
    position_id TEXT, -- empty for an order that is not ours
    signal_id TEXT,
    symbol TEXT NOT NULL,
    leg TEXT NOT NULL,
    side TEXT NOT NULL,
    kind TEXT NOT NULL,
    reduce_only INTEGER NOT NULL,
    quantity TEXT NOT NULL,
    price TEXT,
    trigger_price TEXT,
    status TEXT NOT NULL,
    order_id INTEGER,
    child_order_id INTEGER,
    filled TEXT NOT NULL,
    average_price TEXT,
    detail TEXT NOT NULL,
    expected_price TEXT, -- what the slippage estimate said when it was made
    created_at INTEGER NOT NULL,
    sent_at INTEGER,
    updated_at INTEGER NOT NULL,
    final_at INTEGER, -- empty: nobody knows yet how it ends
    PRIMARY KEY (account, client_id)
) STRICT;
CREATE INDEX orders_open ON orders (account) WHERE final_at IS NULL;
CREATE INDEX orders_by_position ON orders (account, position_id);
CREATE INDEX orders_by_time ON orders (created_at);

-- One row for each execution, however often it is told: the first one stays.
CREATE TABLE fills (
    account TEXT NOT NULL,
    symbol TEXT NOT NULL,
    trade_id INTEGER NOT NULL,
    order_id INTEGER NOT NULL,
    client_id TEXT NOT NULL,
    position_id TEXT, -- empty for one that belongs to none of ours
    side TEXT NOT NULL,
    price TEXT NOT NULL,
    quantity TEXT NOT NULL,
    fee TEXT NOT NULL,
    fee_asset TEXT NOT NULL,
    realized_pnl TEXT NOT NULL,
    is_maker INTEGER NOT NULL,
    kind TEXT NOT NULL, -- trade, liquidation, adl, manual
    traded_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (account, symbol, trade_id)
) STRICT;
CREATE INDEX fills_by_position ON fills (account, position_id);
CREATE INDEX fills_by_time ON fills (traded_at);

CREATE TABLE positions (
    account TEXT NOT NULL,
    position_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    side INTEGER NOT NULL, -- 1 long, -1 short
    status TEXT NOT NULL, -- opening, open, closing, closed
    quantity TEXT NOT NULL, -- open now
    opened_quantity TEXT NOT NULL,
    entry_price TEXT,
    exit_price TEXT,
    target TEXT,
    stop TEXT,
    protective_stop TEXT,
    deadline INTEGER,
    reference_mark TEXT,
    best_mark TEXT,
    signal_id TEXT NOT NULL, -- empty where no signal opened it
    origin TEXT NOT NULL, -- signal, adopted, manual
    opened_at INTEGER NOT NULL,
    closed_at INTEGER,
    exit_reason TEXT NOT NULL,
    realized_pnl TEXT NOT NULL,
    fees TEXT NOT NULL,
    funding TEXT NOT NULL,
    naked_ms INTEGER NOT NULL, -- how long it was open without a stop confirmed at the exchange
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (account, position_id)
) STRICT;
CREATE INDEX positions_not_closed ON positions (account) WHERE status <> 'closed';
CREATE INDEX positions_by_time ON positions (opened_at);

-- Signals that were not traded, with the name of the rule that said no.
CREATE TABLE refusals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    signal_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    rule TEXT NOT NULL,
    detail TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
CREATE INDEX refusals_by_time ON refusals (at);

-- Every difference between what we held for true and what the exchange had, and what was done about it.
CREATE TABLE reconciliations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    symbol TEXT NOT NULL,
    ours TEXT NOT NULL,
    theirs TEXT NOT NULL,
    action TEXT NOT NULL
) STRICT;
CREATE INDEX reconciliations_by_time ON reconciliations (at);

-- The account's income history: funding above all. A kind's ids are unique within a symbol only.
CREATE TABLE incomes (
    account TEXT NOT NULL,
    kind TEXT NOT NULL,
    income_id INTEGER NOT NULL,
    symbol TEXT NOT NULL, -- empty where it is about none
    asset TEXT NOT NULL,
    amount TEXT NOT NULL,
    position_id TEXT,
    at INTEGER NOT NULL,
    PRIMARY KEY (account, kind, income_id, symbol)
) STRICT;
CREATE INDEX incomes_by_time ON incomes (at);

-- A live order beside what the paper account would have got for it. Positive: the live fill was the worse one.
CREATE TABLE twins (
    client_id TEXT PRIMARY KEY NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    quantity TEXT NOT NULL,
    live_price TEXT NOT NULL,
    paper_price TEXT NOT NULL,
    difference_bps REAL NOT NULL,
    at INTEGER NOT NULL
) STRICT;

-- The last value of each minute.
CREATE TABLE equity (
    account TEXT NOT NULL,
    minute INTEGER NOT NULL,
    wallet TEXT NOT NULL,
    unrealized TEXT NOT NULL,
    equity TEXT NOT NULL,
    PRIMARY KEY (account, minute)
) STRICT;

-- What `perpline doctor` found, for keys that the hash stands for. Live trading asks for a passed one.
CREATE TABLE doctors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    account_hash TEXT NOT NULL,
    passed INTEGER NOT NULL,
    result TEXT NOT NULL -- JSON
) STRICT;

-- Numbers that are given out once: runs.
CREATE TABLE counters (
    name TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) STRICT;

-- Who may do something alone, and until when. `fencing` grows with every change of hands.
CREATE TABLE leases (
    name TEXT PRIMARY KEY NOT NULL,
    owner TEXT NOT NULL, -- empty: given back
    until INTEGER NOT NULL,
    fencing INTEGER NOT NULL
) STRICT;
