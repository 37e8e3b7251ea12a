"""Errors, named by what the caller does next.

PerplineError
├── Malformed        set the input aside, count it, go on
├── Unavailable      try again later (`retry_after_s` when the other side said so)
│   └── RateLimited  stop asking this address until `retry_after_s` has passed
├── Refused          give up on this request: the other side understood it and said no (`code`)
├── Fenced           stop leading: another process does, and nothing of this was stored
├── TooSlow          stop telling whoever is; there is nothing to mend here
├── OutcomeUnknown   look it up: the request may or may not have taken effect; never send it again
└── NeedsPerson      tell the person and stop: the text says what happened and what to do
"""


class PerplineError(Exception):
    """Any error perpline raises on purpose. Its text is one line, written for a person, without secrets."""


class Malformed(PerplineError):
    """Input from outside that is not what it claims to be. The caller counts it, keeps it aside and goes on."""


class Unavailable(PerplineError):
    """The other side did not answer, or answered that it cannot now. Trying again later is safe."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """The exchange counts too many requests from this address (429), or has banned it for a while (418)."""


class Refused(PerplineError):
    """The other side understood the request and said no; the same request will be refused again.

    `code` is the exchange's own (e.g. -1121), 0 where it gave none.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Fenced(PerplineError):
    """The lease under which this was to be written is not ours any more. Nothing was stored; stop leading."""


class TooSlow(PerplineError):
    """A listener has not taken what it was told in time."""


class OutcomeUnknown(PerplineError):
    """Nobody can say whether the request took effect. It is looked up, never repeated."""


class NeedsPerson(PerplineError):
    """A setting, a file or the surroundings are wrong in a way only a person can mend. Ends the command with exit 1."""
