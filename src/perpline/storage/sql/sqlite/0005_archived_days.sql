-- What `perpline archive` has written to files, a row for each file. A day of which rows came later has more than one.
CREATE TABLE archived (
    "table" TEXT NOT NULL,
    day INTEGER NOT NULL, -- its midnight, UTC
    part INTEGER NOT NULL, -- 1, and more for rows that came later
    file TEXT NOT NULL,
    host TEXT NOT NULL, -- whose file it is
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    archived_at INTEGER NOT NULL,
    dropped_at INTEGER, -- since when the rows are in the file only
    PRIMARY KEY ("table", day, part)
) STRICT;
