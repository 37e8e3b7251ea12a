-- An alarm that `perpline alerts run` has raised. Times are those of its host: an alarm is about the wall's time.
CREATE TABLE alerts (
    name text COLLATE "C" NOT NULL, -- of the rule, and of its page in docs/runbooks
    subject text COLLATE "C" NOT NULL, -- what it is about: a stream, an account, a port; empty where there is only one
    severity text NOT NULL,
    "text" text NOT NULL,
    raised_at bigint NOT NULL,
    cleared_at bigint, -- empty while it stands; of an event, which is never over, raised_at
    notified_at bigint, -- when the first channel took the message; empty: nobody was told while it stood
    PRIMARY KEY (name, subject, raised_at)
);
CREATE INDEX alerts_by_time ON alerts (raised_at);
