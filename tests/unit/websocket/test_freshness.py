"""Streams that are silent though they should not be are named, subscribed again, and given a new connection."""

from dataclasses import dataclass, field

from structlog.testing import capture_logs

from perpline.common.clock import ManualClock
from perpline.websocket.freshness import Freshness

NOW = 1_795_000_000_000


@dataclass
class Link:
    """As much of a connection as a look needs."""

    streams: tuple[str, ...]
    name: str = "market-0"
    is_rolling_over: bool = False
    last_message_at: float | None = None
    heard: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    resubscribed: list[list[str]] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)

    def heard_at(self, stream: str) -> float | None:
        return self.heard.get(stream)

    def since(self, stream: str) -> float | None:
        return max(self.asked[stream], self.heard.get(stream, 0.0))

    def quiet_since(self, wall_s: float) -> list[str]:
        return [stream for stream in self.streams if self.since(stream) < wall_s]

    def resubscribe(self, streams: list[str]) -> None:
        self.resubscribed.append(list(streams))
        self.asked.update(dict.fromkeys(streams, self.last_message_at or 0.0))

    def renew(self, reason: str) -> None:
        self.renewed.append(reason)


class Desk:
    """A clock, connections that are asked for a second after another, and what other sources told."""

    def __init__(self, *links: Link, heal_within_s: float = 10.0, speed: float = 1.0) -> None:
        self.clock = ManualClock(NOW, speed=speed)
        self.links = links
        self.spoken: dict[str, int] = {}
        self.fresh = Freshness(
            self.clock,
            lambda stream: (stream.split("@")[0].upper(), stream.partition("@")[2]),
            lambda symbol, kind: self.spoken.get(symbol),
            heal_within_s,
        )
        for link in links:
            link.asked.update(dict.fromkeys(link.streams, 0.0))

    def live(self, seconds: int, *silent: tuple[str, str]) -> None:
        """So many wall seconds in which every stream speaks but these (connection, stream)."""
        for _ in range(seconds):
            self.clock.advance(self.clock.speed)
            for link in self.links:
                link.last_message_at = self.clock.wall_s()
                for stream in link.streams:
                    if (link.name, stream) not in silent:
                        link.heard[stream] = self.clock.wall_s()
            self.fresh.look(self.links)


def test_a_mark_price_that_stops_is_named_subscribed_again_and_then_given_a_new_connection() -> None:
    link = Link(("btcusdt@markPrice@1s", "ethusdt@markPrice@1s"))
    desk, mute = Desk(link), ("market-0", "btcusdt@markPrice@1s")
    with capture_logs() as logs:
        desk.live(3)
        desk.live(5, mute)
        assert desk.fresh.stale() == {}
        desk.live(1, mute)
        assert desk.fresh.stale() == {"market-0": ["BTCUSDT markPrice@1s"]}
        assert link.resubscribed == [["btcusdt@markPrice@1s"]]
        desk.live(9, mute)
        assert link.renewed == []
        desk.live(2, mute)
        assert link.renewed == ["btcusdt@markPrice@1s is silent"]
        desk.live(1)

    assert desk.fresh.stale() == {}
    assert [line["event"] for line in logs] == ["streams_stale", "stream_still_stale", "stream_fresh_again"]
    assert (desk.fresh.resubscribed, desk.fresh.renewals, desk.fresh.healed) == (1, 1, 1)


def test_what_never_speaks_again_is_tried_ever_more_seldom() -> None:
    link = Link(("btcusdt@markPrice@1s", "ethusdt@markPrice@1s"))
    desk = Desk(link)
    desk.live(3)
    desk.live(4000, ("market-0", "btcusdt@markPrice@1s"))

    assert 6 <= len(link.renewed) <= 9
    assert len(link.resubscribed) == 1


def test_books_and_klines_of_a_symbol_that_nobody_trades_are_silent_by_right() -> None:
    link = Link(("btcusdt@markPrice@1s", "btcusdt@bookTicker", "btcusdt@kline_1m", "btcusdt@kline_1h"))
    desk = Desk(link)
    desk.live(3)
    desk.spoken["BTCUSDT"] = desk.clock.now_ms()
    desk.live(3600, *(("market-0", stream) for stream in link.streams[1:]))

    assert desk.fresh.stale() == {}
    assert link.resubscribed == []


def test_a_book_is_stale_once_trades_are_known_that_it_must_have_told_of() -> None:
    link = Link(("btcusdt@markPrice@1s", "btcusdt@bookTicker"))
    desk, mute = Desk(link), ("market-0", "btcusdt@bookTicker")
    desk.live(3)
    desk.live(60, mute)
    desk.spoken["BTCUSDT"] = desk.clock.now_ms() - 45_000  # 15 s after the book was heard: it may have come before
    desk.live(1, mute)
    assert desk.fresh.stale() == {}
    desk.spoken["BTCUSDT"] = desk.clock.now_ms() - 2_000
    desk.live(1, mute)

    assert desk.fresh.stale() == {"market-0": ["BTCUSDT bookTicker"]}


def test_a_stream_that_one_lane_delivers_and_the_other_does_not_is_stale_on_the_other_alone() -> None:
    streams = ("btcusdt@markPrice@1s", "btcusdt@kline_15m")
    one, two = Link(streams), Link(streams, name="market-0.2")
    desk = Desk(one, two)
    desk.live(3)
    desk.live(25, ("market-0.2", "btcusdt@kline_15m"))

    assert desk.fresh.stale() == {"market-0.2": ["BTCUSDT kline_15m"]}
    assert (one.resubscribed, two.resubscribed) == ([], [["btcusdt@kline_15m"]])


def test_streams_of_a_connection_that_is_silent_as_a_whole_are_not_named_one_by_one() -> None:
    link = Link(("btcusdt@markPrice@1s", "ethusdt@markPrice@1s"))
    desk = Desk(link)
    desk.live(3)
    for _ in range(14):
        desk.clock.advance(1)
        desk.fresh.look([link])

    assert desk.fresh.stale() == {}


def test_a_new_connection_has_its_time_before_its_streams_are_judged() -> None:
    link = Link(("btcusdt@markPrice@1s", "ethusdt@markPrice@1s"))
    desk, mute = Desk(link), ("market-0", "btcusdt@markPrice@1s")
    desk.live(3)
    desk.clock.advance(60)  # away
    link.asked = dict.fromkeys(link.streams, desk.clock.wall_s())
    desk.live(5, mute)
    assert desk.fresh.stale() == {}
    desk.live(1, mute)
    assert desk.fresh.stale() == {"market-0": ["BTCUSDT markPrice@1s"]}


def test_a_symbol_that_is_not_followed_any_more_is_not_stale() -> None:
    link = Link(("btcusdt@markPrice@1s", "ethusdt@markPrice@1s"))
    desk, mute = Desk(link), ("market-0", "btcusdt@markPrice@1s")
    desk.live(3)
    desk.live(6, mute)
    assert desk.fresh.stale() != {}
    link.streams = ("ethusdt@markPrice@1s",)
    desk.live(1)

    assert desk.fresh.stale() == {}


def test_limits_are_the_markets_seconds_but_never_less_than_a_second_of_the_wall() -> None:
    assert Desk().fresh.limit_s("markPrice@1s") == 5.0
    assert Desk(speed=2.0).fresh.limit_s("markPrice@1s") == 2.5
    assert Desk(speed=60.0).fresh.limit_s("markPrice@1s") == 1.0
