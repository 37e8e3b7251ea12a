-- What `perpline archive` has written to files, a row for each file. A day of which rows came later has more than one.
CREATE TABLE archived (
    "table" text COLLATE "C" NOT NULL,
    day bigint NOT NULL, -- its midnight, UTC
    part bigint NOT NULL, -- 1, and more for rows that came later
    file text NOT NULL,
    host text NOT NULL, -- whose file it is
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    archived_at bigint NOT NULL,
    dropped_at bigint, -- since when the rows are in the file only
    PRIMARY KEY ("table", day, part)
);
