"""A dashboard on a database with a few rows of everything, in a thread, and asked as a browser would, or worse."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perpline.bootstrap import open_store
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.dashboard.app import Listening, serve
from perpline.domain.candle import Candle, KlineUpdate, closed_candle
from perpline.domain.signal import Decision, Prediction, Status, signal_id
from perpline.storage.store import TRADING_TABLES, candle_row

MINUTE = 60_000
T = 1_795_410_660_000
"""2026-11-23 05:11 UTC: the newest minute of the rows."""
SYMBOLS = ("AUSDT", "BUSDT")
MODEL = "m1"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def settings_in(folder: Path, **changes: object) -> Settings:
    """At an exchange that is not there, whose time is that of the rows."""
    there = {"binance_futures_ws_url": "ws://127.0.0.1:1", "binance_futures_rest_url": "http://127.0.0.1:1"}
    values = {"data_dir": str(folder), "dashboard_port": 0, "status_port": 1, "network": "custom", **there, **changes}
    return load_settings(None, {"HOME": str(folder)}, values)


def candle(symbol: str, open_time: int, close: float = 100.5, source: str = "ws", late_ms: int = 100) -> Candle:
    return closed_candle(
        KlineUpdate(
            **{"symbol": symbol, "interval": "1m", "open_time": open_time, "close_time": open_time + MINUTE - 1},
            **{"open": 100.0, "high": 101.0, "low": 99.0, "close": close, "volume": 5.0, "quote_volume": 500.0},
            **{"trades": 7, "taker_buy_volume": 2.0, "taker_buy_quote_volume": 200.0, "closed": True},
            **{"event_time": open_time + MINUTE, "received_at": open_time + MINUTE + late_ms, "source": source},
        )
    )


def decision(symbol: str, close_time: int, status: Status = Status.FLAT, **changes: Any) -> Decision:
    us = close_time * 1000
    stamps = {"t_candle_recv": us + 90_000, "t_features": us + 91_000, "t_predict": us + 93_000}
    values = {"side": 0, "p_cal": 0.55, "ev_bp": -1.5, "model_id": MODEL, "xs_n": 2, **stamps, **changes}
    own_id = signal_id("champion", MODEL, symbol, close_time)
    return Decision(signal_id=own_id, slot="champion", symbol=symbol, close_time=close_time, status=status, **values)


def position(position_id: str, **changes: object) -> tuple[Any, ...]:
    values: dict[str, object] = {
        **{"account": "paper", "position_id": position_id, "symbol": "AUSDT", "side": 1, "status": "closed"},
        **{"quantity": "0", "opened_quantity": "2", "entry_price": "100", "exit_price": "101", "target": "102"},
        **{"stop": "99", "protective_stop": "98.5", "deadline": T + MINUTE, "reference_mark": "100"},
        **{"best_mark": "101", "signal_id": "s", "origin": "signal", "opened_at": T - 9 * MINUTE},
        **{"closed_at": T - 5 * MINUTE, "exit_reason": "target", "realized_pnl": "2", "fees": "0.1"},
        **{"funding": "0", "naked_ms": 120, "updated_at": T - 5 * MINUTE, **changes},
    }
    return TRADING_TABLES["positions"].row(values)


async def fill(folder: Path, url: str = "") -> None:
    """Twelve minutes of two symbols, one of them with a hole, closes over REST and a signal; trades; notes."""
    store = open_store(url or f"sqlite:///{folder / 'perpline.db'}")
    await store.open()
    candles = [candle(symbol, T - n * MINUTE, 100.0 + n) for symbol in SYMBOLS for n in range(12, 0, -1)]
    candles = [each for each in candles if (each.symbol, each.open_time) != ("AUSDT", T - 4 * MINUTE)]
    replaced = {
        ("BUSDT", T - 3 * MINUTE): candle("BUSDT", T - 3 * MINUTE, source="rest", late_ms=3500),
        ("BUSDT", T - 5 * MINUTE): candle("BUSDT", T - 5 * MINUTE, source="rest", late_ms=900),
    }
    await store.add_rows(
        "candles_1m", [candle_row(replaced.get((each.symbol, each.open_time), each)) for each in candles]
    )
    decided = [decision(symbol, T - n * MINUTE) for symbol in SYMBOLS for n in range(10, -1, -1)]
    decided = [each for each in decided if (each.symbol, each.close_time) not in {("AUSDT", T), ("BUSDT", T - MINUTE)}]
    vector = np.array([1.0, float("nan"), float("inf")], "<f4").tobytes()
    told = Prediction(
        **{"slot": "champion", "symbol": "AUSDT", "close_time": T, "model_id": MODEL, "p_long_raw": 0.6},
        **{"p_short_raw": 0.4, "p_long": 0.61, "p_short": 0.39, "features": vector, "feat_ref": "f"},
    )
    decided.append(decision("AUSDT", T, Status.OK, side=1, p_cal=0.61, ev_bp=3.5, tp_price="102", sl_price="99"))
    decided.append(decision("BUSDT", T - MINUTE, Status.SKIPPED_GAP, p_cal=None, ev_bp=None, detail="a hole"))
    await store.commit_decisions(decided, [told], [], T * 1000 + 95_000)
    gap = await store.open_gap("BUSDT", "candles_1m", T - 7 * MINUTE, T - 6 * MINUTE, "the line was cut", T)
    await store.close_gap(gap, T, "rest")
    await store.open_gap("AUSDT", "candles_1m", T - 4 * MINUTE, T - 3 * MINUTE, "no process was alive", T)
    await store.add_rows("premium_index", [("AUSDT", T - MINUTE, 100.1, 100.2, 0.0001, T + MINUTE, 60, T, T)])
    interest = [("AUSDT", T - MINUTE, value, None, "spot_1m", T, revision) for revision, value in enumerate((9.0, 5.5))]
    await store.add_rows("open_interest", interest)
    ratios = [
        ("AUSDT", "taker", T - MINUTE, value, None, None, T, T, revision) for revision, value in ((0, 7.0), (1, 1.5))
    ]
    await store.add_rows("long_short_ratio", ratios)
    await store.add_rows("revisions", [("AUSDT", "candles_1m", T - MINUTE, "close", "1", "2", "ws,rest", T)])
    await store.add_model(MODEL, T, "")
    await store.add_deployment("champion", MODEL, T - 60 * MINUTE, "ana", {MODEL: "champion"})
    modes = TRADING_TABLES["modes"]
    asked = {"symbol": "", "mode": "paper", "positions": "keep", "changed_at": T - 60 * MINUTE, "by": "ana"}
    equity = [("paper", T - n * MINUTE, "10000", "0", str(10_000 + 5 - n)) for n in range(5, -1, -1)]
    open_one = position("p2", status="open", quantity="2", exit_price=None, closed_at=None, exit_reason="")
    await store.commit_trading(
        {
            "modes": [modes.row({**asked, "reason": "to see it trade"})],
            "positions": [position("p1"), open_one],
            "equity": equity,
            "refusals": [("paper", "s", "BUSDT", "slippage", "9.0 bp from the mid, 8 may be", T)],
            "reconciliations": [("live", T, "position", "AUSDT", "1", "2", "adopted")],
        }
    )
    await store.close()
    (folder / "models" / MODEL).mkdir(parents=True)
    (folder / "models" / MODEL / "report.html").write_text("<h1>how good it is</h1><script>alert(1)</script>")


async def store_rows(folder: Path, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    """More rows of tables of trading."""
    store = open_store(f"sqlite:///{folder / 'perpline.db'}")
    await store.open()
    await store.commit_trading(rows)
    await store.close()


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as strict JSON: neither NaN nor Infinity."""
        return json.loads(self.body, parse_constant=_no_constant)


class Served:
    """A running dashboard. `ask` without further words is a browser that has come in."""

    def __init__(self, listening: Listening) -> None:
        self.port = listening.port
        self.url = listening.url
        self.token = listening.url.partition("token=")[2]
        entered = self.ask("GET", f"/?token={self.token}", cookie="")
        self.cookie = entered.headers["Set-Cookie"].split(";")[0]
        self.csrf: str = self.ask("GET", "/api/session").json["csrf"]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        cookie: str | None = None,
        host: str | None = None,
        **headers: str,
    ) -> Answer:
        """Ask, and see that whatever is answered has the headers that keep others out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host if host is not None else f"127.0.0.1:{self.port}")
            if cookie != "":
                connection.putheader("Cookie", cookie or self.cookie)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if content is not None:
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            answer = connection.getresponse()
            found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()
        assert {name: found.headers.get(name) for name in HEADERS} == HEADERS, (method, path, found)
        assert "default-src 'none'" in found.headers["Content-Security-Policy"]
        if path.startswith("/api") and "/report" not in path:
            assert found.headers["Cache-Control"] == "no-store"
        assert "unsafe" not in found.headers["Content-Security-Policy"] or found.headers[
            "Content-Security-Policy"
        ].startswith("sandbox;")
        return found

    def post(self, path: str, body: bytes | dict[str, Any], *, host: str | None = None, **headers: str) -> Answer:
        """As our own page posts."""
        ours = {"X_Perpline_CSRF": self.csrf, "Content_Type": "application/json"}
        return self.ask("POST", path, body, host=host, **{**ours, **headers})


@contextmanager
def served(settings: Settings, **how: Any) -> Iterator[Served]:
    """A dashboard with these settings in a thread of its own."""
    ready, said, loops = threading.Event(), [], []

    async def run() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))

        def on_ready(listening: Listening) -> None:
            said.append(listening)
            ready.set()

        options = {"allow_remote": False, "without_tls": False, "tls": None, **how}
        await serve(settings, SystemClock(), stop, by="dashboard:test", on_ready=on_ready, **options)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(10), "the dashboard did not listen"
    loop, stop = loops[0]
    try:
        yield Served(said[0])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
