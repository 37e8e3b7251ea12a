-- Which symbols are followed while the settings stay as they are (perpline.storage.symbols says how rows are read).

-- A change of the list, by a person (add, remove) or by a worker (delisted, listed again). In the order of adding.
CREATE TABLE symbols (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    symbol TEXT NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('add', 'remove', 'delisted', 'listed')),
    changed_at INTEGER NOT NULL,
    "by" TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;

-- What the exchange said of a symbol when a worker that follows it asked last.
CREATE TABLE listings (
    symbol TEXT NOT NULL PRIMARY KEY,
    status TEXT NOT NULL, -- in the exchange's words; GONE: its list does not name it any more
    seen_at INTEGER NOT NULL,
    followed_at INTEGER, -- since when; empty: it is not followed any more
    delivery_at INTEGER, -- when it ends, where that is announced
    note TEXT NOT NULL -- what a person should know: why it ends, what it waits for
) STRICT;
