-- Every statement but the generated inserts, each under its name.

-- name: decided
-- Which of the rows ($1 slot, $2 symbol, $3 close_time) are in `signals`. The bounds $4 and $5 leave only their days.
SELECT s.slot, s.symbol, s.close_time
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS asked (slot, symbol, close_time)
JOIN signals AS s
    ON s.slot = asked.slot COLLATE "C" AND s.symbol = asked.symbol COLLATE "C" AND s.close_time = asked.close_time
WHERE s.close_time BETWEEN $4 AND $5;

-- name: last_seqs
SELECT q.slot, q.symbol, q.seq, q.close_time
FROM unnest($1::text[], $2::text[]) AS asked (slot, symbol)
JOIN signal_seqs AS q ON q.slot = asked.slot COLLATE "C" AND q.symbol = asked.symbol COLLATE "C";

-- name: outbox_ids
-- The next $1 ids, which are nobody else's then.
SELECT array_agg(nextval(pg_get_serial_sequence('outbox', 'id')) ORDER BY n) FROM generate_series(1, $1) AS n;

-- name: last_decided
SELECT symbol, close_time FROM signal_seqs WHERE slot = $1;

-- name: slot_seqs
SELECT symbol, seq FROM signal_seqs WHERE slot = $1;

-- name: last_signals
SELECT symbol, side, max(close_time) FROM signals
WHERE slot = $1 AND close_time >= $2 AND status = 'ok' GROUP BY symbol, side;

-- name: ok_between
SELECT symbol, side, max(close_time) FROM signals
WHERE slot = $1 AND symbol = ANY($2::text[] COLLATE "C") AND close_time >= $3 AND close_time < $4 AND status = 'ok'
GROUP BY symbol, side;

-- name: decision_rows
SELECT symbol, close_time, status FROM signals WHERE slot = $1 AND close_time BETWEEN $2 AND $3
ORDER BY close_time, symbol;

-- name: pending_messages
SELECT id, kind, slot, symbol, close_time, payload, valid_until
FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT $1;

-- name: mark_published
-- A second mark keeps the first time.
UPDATE outbox SET published_at = $1 WHERE id = ANY($2::bigint[]) AND published_at IS NULL;

-- name: open_gap
-- The update changes nothing; without it the row that is there already would not be returned.
INSERT INTO gaps (symbol, series, from_time, to_time, cause, detected_at) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (symbol, series, from_time, to_time) WHERE repaired_at IS NULL DO UPDATE SET cause = gaps.cause
RETURNING id;

-- name: close_gap
UPDATE gaps SET repaired_at = $2, repaired_by = $3 WHERE id = $1 AND repaired_at IS NULL;

-- name: gaps
SELECT id, symbol, series, from_time, to_time, cause, detected_at, repaired_at, repaired_by
FROM gaps WHERE repaired_at IS NULL OR NOT $1 ORDER BY id;

-- name: count_seqs
INSERT INTO signal_seqs (slot, symbol, seq, close_time)
SELECT slot, symbol, max(seq), max(close_time) FROM signals GROUP BY slot, symbol;

-- name: damage
-- What PostgreSQL keeps no watch over by itself: indexes that a failed command left behind, and our own counts.
SELECT 'index ' || c.relname || ' is not valid' FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
UNION ALL
SELECT format('signal_seqs says seq %s for %s %s, and signals %s', q.seq, slot, symbol, s.seq)
FROM signal_seqs AS q -- those of which every row has been archived count on
RIGHT JOIN (SELECT slot, symbol, max(seq) AS seq, max(close_time) AS close_time FROM signals GROUP BY slot, symbol) AS s
    USING (slot, symbol)
WHERE (q.seq, q.close_time) IS DISTINCT FROM (s.seq, s.close_time);

-- name: columns
-- Every table but the partitions, with its columns and their types.
SELECT c.relname, a.attname, format_type(a.atttypid, NULL)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum;

-- name: partitioned
-- Each partitioned table with the column that its days are of.
SELECT c.relname, a.attname
FROM pg_partitioned_table AS p
JOIN pg_class AS c ON c.oid = p.partrelid
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema());

-- name: partitions
SELECT parent.relname, child.relname
FROM pg_inherits AS i
JOIN pg_class AS parent ON parent.oid = i.inhparent
JOIN pg_class AS child ON child.oid = i.inhrelid
WHERE parent.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
AND parent.relkind = 'p' AND child.relkind = 'r';

-- name: add_model
INSERT INTO models (model_id, status, created_at, report) VALUES ($1, 'candidate', $2, $3) ON CONFLICT DO NOTHING;

-- name: models
SELECT model_id, status, created_at, report FROM models ORDER BY created_at, model_id;

-- name: add_deployment
INSERT INTO deployments (slot, model_id, effective_from_close_time, "by") VALUES ($1, $2, $3, $4) RETURNING id;

-- name: set_model_status
UPDATE models SET status = $1 WHERE model_id = $2;

-- name: deployments
SELECT id, slot, model_id, effective_from_close_time AS effective_from, "by" FROM deployments ORDER BY id;

-- name: next_number
INSERT INTO counters (name, value) VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET value = counters.value + 1
RETURNING value;

-- name: take_lease
-- $3 is now: a lease that is over is anybody's.
INSERT INTO leases (name, owner, until, fencing) VALUES ($1, $2, $4, 1)
ON CONFLICT (name) DO UPDATE SET
    owner = excluded.owner, until = excluded.until,
    fencing = leases.fencing + CASE WHEN leases.owner = excluded.owner THEN 0 ELSE 1 END
WHERE leases.owner = excluded.owner OR leases.until <= $3
RETURNING fencing;

-- name: lease
SELECT owner, until, fencing FROM leases WHERE name = $1;

-- name: fence
-- FOR SHARE: the lease cannot change hands before this transaction has ended.
SELECT 1 FROM leases WHERE name = $1 AND owner = $2 AND fencing = $3 FOR SHARE;

-- name: drop_lease
-- The row stays, so that its number goes on growing.
UPDATE leases SET owner = '', until = 0 WHERE name = $1 AND owner = $2;

-- name: note_archived
-- A crash between the file and this row leaves the row to the next attempt.
INSERT INTO archived ("table", day, part, file, host, rows, bytes, archived_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT ("table", day, part) DO UPDATE SET
    file = excluded.file, host = excluded.host, rows = excluded.rows, bytes = excluded.bytes,
    archived_at = excluded.archived_at;

-- name: note_dropped
UPDATE archived SET dropped_at = $3 WHERE "table" = $1 AND day = $2 AND dropped_at IS NULL;

-- name: prune_outbox
DELETE FROM outbox WHERE id IN (
    SELECT id FROM outbox WHERE published_at < $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
) RETURNING id;
