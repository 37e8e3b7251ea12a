-- Few minutes become signals: those of a span of time are found without reading the others, and so are the positions
-- that were closed in one.
CREATE INDEX signals_ok_by_time ON signals (slot, close_time) WHERE status = 'ok';
CREATE INDEX positions_by_end ON positions (closed_at) WHERE status = 'closed';
