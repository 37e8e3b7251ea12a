-- Every statement but the generated inserts, each under its name.
--
-- Lists go in and come out as JSON text, one row: apsw takes the interpreter's lock anew for every row it steps
-- through, and beside a busy event loop each of those may wait milliseconds.

-- name: decided
-- Which of the (symbol, close_time) pairs ?2 have a row in the slot.
SELECT json_group_array(json_array(s.symbol, s.close_time))
FROM json_each(?2) AS asked
CROSS JOIN signals AS s -- CROSS: look up each pair, never walk the table
WHERE s.slot = ?1 AND s.symbol = asked.value ->> 0 AND s.close_time = asked.value ->> 1;

-- name: last_seq
-- The highest seq of each symbol of the list ?2 in the slot, null where there is none.
SELECT json_group_object(asked.value, (SELECT max(seq) FROM signals WHERE slot = ?1 AND symbol = asked.value))
FROM json_each(?2) AS asked;

-- name: last_decided
-- The newest close_time of each symbol. Hops from symbol to symbol; GROUP BY would walk every row of the slot.
WITH RECURSIVE known (symbol) AS (
    SELECT min(symbol) FROM signals WHERE slot = ?1
    UNION ALL
    SELECT (SELECT min(symbol) FROM signals WHERE slot = ?1 AND symbol > known.symbol)
    FROM known WHERE known.symbol IS NOT NULL
)
SELECT symbol, (SELECT max(close_time) FROM signals WHERE slot = ?1 AND symbol = known.symbol)
FROM known WHERE symbol IS NOT NULL;

-- name: slot_seqs
-- The newest seq of each symbol, found as above.
WITH RECURSIVE known (symbol) AS (
    SELECT min(symbol) FROM signals WHERE slot = ?1
    UNION ALL
    SELECT (SELECT min(symbol) FROM signals WHERE slot = ?1 AND symbol > known.symbol)
    FROM known WHERE known.symbol IS NOT NULL
)
SELECT symbol, (SELECT max(seq) FROM signals WHERE slot = ?1 AND symbol = known.symbol)
FROM known WHERE symbol IS NOT NULL;

-- name: last_signals
-- The + keeps the planner from walking the whole slot in the order of symbols.
SELECT symbol, side, max(close_time) FROM signals
WHERE slot = ?1 AND close_time >= ?2 AND status = 'ok' GROUP BY +symbol, side;

-- name: ok_between
-- ?2: a JSON list of symbols.
SELECT symbol, side, max(close_time) FROM signals
WHERE slot = ?1 AND symbol IN (SELECT value FROM json_each(?2)) AND close_time >= ?3 AND close_time < ?4
    AND status = 'ok'
GROUP BY symbol, side;

-- name: decision_rows
SELECT symbol, close_time, status FROM signals WHERE slot = ?1 AND close_time BETWEEN ?2 AND ?3
ORDER BY close_time, symbol;

-- name: pending_messages
SELECT json_group_array(json_object(
    'id', id, 'kind', kind, 'slot', slot, 'symbol', symbol, 'close_time', close_time,
    'payload', payload, 'valid_until', valid_until
))
FROM (SELECT * FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT ?1);

-- name: mark_published
-- A second mark keeps the first time.
UPDATE outbox SET published_at = ?1 WHERE published_at IS NULL AND id IN (SELECT value FROM json_each(?2));

-- name: add_gap
INSERT INTO gaps (symbol, series, from_time, to_time, cause, detected_at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- name: open_gap
SELECT id FROM gaps WHERE symbol = ? AND series = ? AND from_time = ? AND to_time = ? AND repaired_at IS NULL;

-- name: close_gap
UPDATE gaps SET repaired_at = ?2, repaired_by = ?3 WHERE id = ?1 AND repaired_at IS NULL;

-- name: gaps
SELECT id, symbol, series, from_time, to_time, cause, detected_at, repaired_at, repaired_by
FROM gaps WHERE repaired_at IS NULL OR NOT ?1 ORDER BY id;

-- name: tables
SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name <> 'schema_migrations'
ORDER BY name;

-- name: add_model
INSERT INTO models (model_id, status, created_at, report) VALUES (?, 'candidate', ?, ?) ON CONFLICT DO NOTHING;

-- name: models
SELECT model_id, status, created_at, report FROM models ORDER BY created_at, model_id;

-- name: add_deployment
INSERT INTO deployments (slot, model_id, effective_from_close_time, "by") VALUES (?, ?, ?, ?) RETURNING id;

-- name: set_model_status
UPDATE models SET status = ? WHERE model_id = ?;

-- name: deployments
SELECT id, slot, model_id, effective_from_close_time, "by" FROM deployments ORDER BY id;

-- name: next_number
INSERT INTO counters (name, value) VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET value = counters.value + 1
RETURNING value;

-- name: take_lease
-- ?3 is now: a lease that is over is anybody's.
INSERT INTO leases (name, owner, until, fencing) VALUES (?1, ?2, ?4, 1)
ON CONFLICT (name) DO UPDATE SET
    owner = excluded.owner, until = excluded.until,
    fencing = leases.fencing + CASE WHEN leases.owner = excluded.owner THEN 0 ELSE 1 END
WHERE leases.owner = excluded.owner OR leases.until <= ?3
RETURNING fencing;

-- name: lease
SELECT owner, until, fencing FROM leases WHERE name = ?1;

-- name: fence
SELECT 1 FROM leases WHERE name = ?1 AND owner = ?2 AND fencing = ?3;

-- name: drop_lease
-- The row stays, so that its number goes on growing.
UPDATE leases SET owner = '', until = 0 WHERE name = ?1 AND owner = ?2;

-- name: note_archived
-- A crash between the file and this row leaves the row to the next attempt.
INSERT INTO archived ("table", day, part, file, host, rows, bytes, archived_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT ("table", day, part) DO UPDATE SET
    file = excluded.file, host = excluded.host, rows = excluded.rows, bytes = excluded.bytes,
    archived_at = excluded.archived_at;

-- name: note_dropped
UPDATE archived SET dropped_at = ?3 WHERE "table" = ?1 AND day = ?2 AND dropped_at IS NULL;

-- name: prune_outbox
-- From the oldest on: only where messages wait are there any that stay before those that go.
DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE published_at < ?1 ORDER BY id LIMIT ?2) RETURNING id;
