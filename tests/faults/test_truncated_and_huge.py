"""Frames that break off in the middle of the text, and frames larger than any market message."""

from pathlib import Path

from perpline.simulation.incidents import Disconnect, Huge, Truncated
from perpline.simulation.server import SimulatedExchange
from running import trouble


async def test_truncated_frames_are_set_aside_and_what_they_held_is_fetched(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(Truncated(share=0.3)), minutes=4)

    assert after.status["messages"]["malformed"] == after.exchange.stats.frames["truncated"] > 50
    assert after.gaps(open_only=True) == []


async def test_a_large_frame_is_passed_over_and_a_huge_one_ends_the_connection(tmp_path: Path) -> None:
    def send_both(exchange: SimulatedExchange) -> None:
        exchange.happens(Huge(share=0.02, size=1 << 20, for_s=60))
        exchange.happens(Huge(route="market", share=0.002, size=6 << 20))

    after = await trouble(tmp_path, send_both, minutes=4)

    assert after.exchange.stats.frames["huge"] >= 2
    assert after.gaps(open_only=True) == []


async def test_a_connection_cut_in_the_middle_of_a_frame_costs_nothing(tmp_path: Path) -> None:
    def cut(exchange: SimulatedExchange) -> None:
        for at_s in (0, 90):
            exchange.happens(Disconnect(mid_frame=True, at_s=at_s))

    after = await trouble(tmp_path, cut)

    assert sum(entry["losses"] for entry in after.status["connections"]) >= 3
    assert after.status["messages"]["malformed"] == 0
    assert after.gaps(open_only=True) == []
