-- An alarm that `perpline alerts run` has raised. Times are those of its host: an alarm is about the wall's time.
CREATE TABLE alerts (
    name TEXT NOT NULL, -- of the rule, and of its page in docs/runbooks
    subject TEXT NOT NULL, -- what it is about: a stream, an account, a port; empty where there is only one
    severity TEXT NOT NULL,
    "text" TEXT NOT NULL,
    raised_at INTEGER NOT NULL,
    cleared_at INTEGER, -- empty while it stands; of an event, which is never over, raised_at
    notified_at INTEGER, -- when the first channel took the message; empty: nobody was told while it stood
    PRIMARY KEY (name, subject, raised_at)
) STRICT;
CREATE INDEX alerts_by_time ON alerts (raised_at);
