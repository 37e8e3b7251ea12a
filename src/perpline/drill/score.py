"""What a drill left behind, judged: the exchange's truth against the rows and messages that were found.

Pure: `judge` takes facts and says what was lost, what came twice and what was skipped without an excuse.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

MINUTE_MS: Final = 60_000
NOT_IN_TIME_MS: Final = 10_000
"""A minute that closed so shortly before something went down had not been decided yet (market time: closing frames
leave up to 2 s after T, and a missing one is asked for 3 s after it)."""
EXCUSED_AFTER_MS: Final = 10_000
"""Market time after the process or the exchange can be reached again in which skipped decisions are excused."""
EXCUSED_AFTER_WALL_S: Final = 3.0
"""The same as wall time, for dialling and loading take wall time: whichever is longer in market time counts."""
JUDGEMENTS: Final = ("skipped_ood",)
"""Skips that are the model's judgement of the market and no consequence of a fault: listed, never a failure."""

CandleKey = tuple[str, str, int]
"""interval, symbol, open time"""
Numbers = tuple[float, ...]


class Down(Struct, frozen=True):
    """A stretch of market time in which nobody could decide, by definition of the drill."""

    why: str
    since: int
    until: int
    symbol: str = ""
    """The one it concerns; empty for all."""
    status: str = ""
    """The only skip that it excuses; empty for any."""


class Decided(Struct, frozen=True):
    """A row of `signals`."""

    symbol: str
    close_time: int
    status: str
    signal_id: str
    detail: str = ""


class Told(Struct, frozen=True):
    """A message about a decision, where it was found: outbox, stream or announced."""

    where: str
    symbol: str
    close_time: int
    signal_id: str
    published: bool = True


class Asked(Struct, frozen=True):
    """What the exchange counted of one client id: how often it was sent, how often it was carried out."""

    client_id: str
    seen: int
    taken: int


class Facts(Struct, kw_only=True):
    """Everything that is judged. Times are market milliseconds of the exchange."""

    until: int
    """The last T that counts."""
    expected: Mapping[str, tuple[int, int]]
    """First and last T of each symbol that must have a row; a last one beyond `until` means `until`."""
    decided: Sequence[Decided]
    told: Sequence[Told]
    true_candles: Mapping[CandleKey, Numbers]
    stored_candles: Mapping[CandleKey, Numbers]
    """Without those that the worker made itself for minutes that the exchange lacks."""
    down: Sequence[Down] = ()
    speed: float = 1.0
    """Of market time, as against the wall's."""
    asked: Sequence[Asked] = ()
    entries: Sequence[str] = ()
    """The position that each entry order at the exchange is for."""
    books: Sequence[str] = ()
    """How the books of our tables differ from the exchange's, in words."""
    seconds_to_heal: float | None = 0.0
    """None: it did not heal."""
    trouble: Sequence[str] = ()
    """What else went wrong: a process that ended by itself, a bug in a handler."""


class Score(Struct, kw_only=True):
    """The verdict. It passes if `reasons` is empty."""

    candles_lost: int
    candles_wrong: int
    decisions_lost: int
    decisions_twice: int
    messages_lost: int
    orders_twice: int
    skipped: dict[str, int]
    """Of whatever status, excused or not."""
    skipped_excused: int
    seconds_to_heal: float | None
    reasons: list[str]

    @property
    def passed(self) -> bool:
        return not self.reasons


def judge(facts: Facts) -> Score:
    wanted = _wanted(facts)
    rows = Counter((each.symbol, each.close_time) for each in facts.decided)
    lost = sorted(wanted - rows.keys())
    twice = {key for key, count in rows.items() if count > 1} | _told_twice(facts) | _contradicted(facts)
    missing = sorted(facts.true_candles.keys() - facts.stored_candles.keys())
    wrong = sorted(key for key, numbers in facts.stored_candles.items() if facts.true_candles.get(key) != numbers)
    skips = [each for each in facts.decided if each.status.startswith("skipped_") and each.close_time <= facts.until]
    unexcused = [each for each in skips if each.status not in JUDGEMENTS and not _excused(each, facts)]
    untold = _untold(facts)
    missed = {(each.symbol, each.close_time) for each in skips if each.status == "skipped_missed"}
    late = sorted(missed & {(each.symbol, each.close_time) for each in facts.told})
    again = _sent_twice(facts)
    reasons = [
        *_reason(missing, "candle lost", "candles lost"),
        *_reason(wrong, "candle that the exchange does not know so", "candles that the exchange does not know so"),
        *_reason(lost, "minute without a decision", "minutes without a decision"),
        *_reason(sorted(twice), "minute decided or told twice", "minutes decided or told twice"),
        *_reason(untold, "decision that was not published", "decisions that were not published"),
        *_reason(late, "missed minute published", "missed minutes published"),
        *_reason(again, "order sent twice", "orders sent twice"),
        *_reason([(e.status, e.symbol, e.close_time) for e in unexcused], "decision skipped", "decisions skipped"),
        *facts.books,
        *([] if facts.seconds_to_heal is not None else ["it did not heal"]),
        *facts.trouble,
    ]
    return Score(
        candles_lost=len(missing),
        candles_wrong=len(wrong),
        decisions_lost=len(lost),
        decisions_twice=len(twice),
        messages_lost=len(untold),
        orders_twice=len(again),
        skipped=dict(sorted(Counter(each.status for each in skips).items())),
        skipped_excused=len(skips) - len(unexcused),
        seconds_to_heal=facts.seconds_to_heal,
        reasons=reasons,
    )


def _wanted(facts: Facts) -> set[tuple[str, int]]:
    return {
        (symbol, minute)
        for symbol, (first, last) in facts.expected.items()
        for minute in range(first, min(last, facts.until) + 1, MINUTE_MS)
    }


def _told_twice(facts: Facts) -> set[tuple[str, int]]:
    counts = Counter((each.where, each.symbol, each.close_time) for each in facts.told)
    return {(symbol, minute) for (_, symbol, minute), count in counts.items() if count > 1}


def _contradicted(facts: Facts) -> set[tuple[str, int]]:
    """Minutes of which a message tells another decision than the row: two have had their effect."""
    ids = {(each.symbol, each.close_time): each.signal_id for each in facts.decided}
    keys = [((each.symbol, each.close_time), each.signal_id) for each in facts.told if each.close_time <= facts.until]
    return {key for key, signal_id in keys if ids.get(key) != signal_id}


def _untold(facts: Facts) -> list[tuple[str, int]]:
    """Decisions that should have been published and were not, or not everywhere they should have been."""
    places = {each.where for each in facts.told if each.where != "announced"} or {"outbox"}
    told = {(each.where, each.symbol, each.close_time) for each in facts.told if each.published}
    return sorted(
        (each.symbol, each.close_time)
        for each in facts.decided
        if each.status != "skipped_missed" and each.close_time <= facts.until
        if any((place, each.symbol, each.close_time) not in told for place in places)
    )


def _sent_twice(facts: Facts) -> list[str]:
    """Client ids that were sent or carried out more than once, and positions that were entered more than once."""
    sent = [each.client_id for each in facts.asked if each.seen > 1 or each.taken > 1]
    return sorted(sent + [position for position, count in Counter(facts.entries).items() if count > 1])


def _excused(skip: Decided, facts: Facts) -> bool:
    after = max(EXCUSED_AFTER_MS, round(EXCUSED_AFTER_WALL_S * 1000 * facts.speed))
    return any(
        each.symbol in ("", skip.symbol)
        and each.status in ("", skip.status)
        and each.since - NOT_IN_TIME_MS <= skip.close_time <= each.until + after
        for each in facts.down
    )


def _reason(found: Sequence[Any], one: str, many: str) -> Iterable[str]:
    if found:
        text = f"{len(found)} {one if len(found) == 1 else many}"
        shown = ", ".join(" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in found[:3])
        yield f"{text}: {shown}{', …' if len(found) > 3 else ''}"
