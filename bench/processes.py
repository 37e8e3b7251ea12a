"""The simulated exchange, workers, dashboards and senders as processes of their own, as a person would start them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.endpoint import token_file

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0


class NotReady(Exception):
    """A process was not ready in time, or ended; the text holds the last line of its log."""


@contextmanager
def sender(module: str, *arguments: object) -> Iterator[list[int]]:
    """The numbers that a sender of this package prints when it listens."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield [int(word) for word in process.stdout.readline().split()]
        finally:
            process.kill()


@contextmanager
def simulated_exchange(symbols: int, speed: float, folder: Path, seed: int = 1) -> Iterator[dict[str, Any]]:
    """The line of JSON it prints when it is ready, and its `pid`."""
    log = folder / "exchange.log"
    process = _perpline(log, "simulate", "--symbols", symbols, "--speed", speed, "--seed", seed)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise NotReady(f"the simulated exchange did not start: {_tail(log)}")
        yield {**json.loads(line), "pid": process.pid}
    finally:
        _end(process)


def exchange_time_ms(exchange: dict[str, Any]) -> int:
    with urllib.request.urlopen(f"{exchange['http']}/fapi/v1/time", timeout=10) as answer:
        return int(json.load(answer)["serverTime"])


class Worker:
    """`perpline run` on an exchange, with everything it keeps in `folder`."""

    def __init__(self, exchange: dict[str, Any], folder: Path, *arguments: str, **changes: object) -> None:
        folder.mkdir(exist_ok=True)
        self.database = folder / "perpline.db"
        self._symbols = int(exchange["symbols"])
        self._log = folder / f"worker-{time.monotonic_ns()}.log"
        settings = {
            "network": "custom",
            "binance_futures_ws_url": exchange["ws"],
            "binance_futures_rest_url": exchange["http"],
            "symbols": f"top:{exchange['symbols']}",
            "clock_speed": exchange["speed"],
            "database_url": f"sqlite:///{self.database}",
            "redis_url": "memory://",
            "status_port": 0,
            "data_dir": str(folder),
            "log_level": "info",
            "log_format": "json",
            **changes,
        }
        self.settings_file = folder / "perpline.toml"
        self.settings_file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        self._began_s = time.monotonic()
        self._process = _perpline(self._log, "run", "--json", "--config", self.settings_file, *arguments)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, limit_s: float = START_LIMIT_S) -> float:
        """Seconds from the start of the process until the worker said it was ready. Raises NotReady."""
        return self._wait(lambda: self._said("worker_ready") is not None, 0.01, limit_s, "ready")

    def wait_windows(self, limit_s: float = START_LIMIT_S) -> float:
        """Seconds from the start of the process until the newest closed 1m candle of every symbol was known, and with
        it, for candles come in order, every window full. Raises NotReady."""
        return self._wait(self._has_windows, 0.1, limit_s, "done with its windows")

    def wait_decided(self, close_time: int, limit_s: float = START_LIMIT_S) -> float:
        """Seconds from the start of the process until every symbol had its decision for this minute. Raises NotReady
        where it has not, or where it was missed."""

        def decided() -> bool:
            if not self.database.exists():
                return False
            statuses = self.statuses(close_time)
            if "skipped_missed" in statuses:
                raise NotReady(f"{statuses.count('skipped_missed')} decisions were missed")
            return len(statuses) >= self._symbols

        return self._wait(decided, 0.02, limit_s, "done with its decisions")

    def statuses(self, close_time: int) -> list[str]:
        """Those of the decisions of this minute."""
        connection = apsw.Connection(str(self.database), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            return [
                text for (text,) in connection.execute("SELECT status FROM signals WHERE close_time = ?", (close_time,))
            ]
        finally:
            connection.close()

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def port(self) -> int | None:
        """Where its endpoint listens; None before it does."""
        started = self._said("worker_started")
        return None if started is None else int(started["port"])

    def status(self) -> dict[str, Any] | None:
        """What it says of itself; None before it listens."""
        port = self.port()
        if port is None:
            return None
        access = json.loads(token_file(self.database.parent, port).read_text())
        request = urllib.request.Request(
            f"{access['url']}/status", headers={"Authorization": f"Bearer {access['token']}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _has_windows(self) -> bool:
        status = self.status()
        if status is None:
            return False
        newest = last_boundary(status["now"]) - MINUTE_MS
        candles = [symbol["last_candle"] for symbol in status["symbols"].values()]
        return all(candle is not None and candle["open_time"] >= newest for candle in candles)

    def _wait(self, condition: Callable[[], bool], pause_s: float, limit_s: float, what: str) -> float:
        while not condition():
            if self._process.poll() is not None:
                raise NotReady(f"the worker ended: {_tail(self._log)}")
            if time.monotonic() - self._began_s > limit_s:
                raise NotReady(f"the worker was not {what} after {limit_s:.0f} s: {_tail(self._log)}")
            time.sleep(pause_s)
        return time.monotonic() - self._began_s

    def _said(self, event: str) -> dict[str, Any] | None:
        """The line of its log with this event."""
        for line in self._log.read_bytes().splitlines():
            if b'"%s"' % event.encode() in line and line.endswith(b"}"):
                found: dict[str, Any] = json.loads(line)
                return found
        return None

    def memory_mb(self) -> tuple[float | None, float | None]:
        """Resident memory now and at its peak; None where the system has no /proc."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return None, None
        kb = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
        return round(kb["VmRSS"] / 1024, 1), round(kb["VmHWM"] / 1024, 1)

    def cpu_s(self) -> float:
        """Processor seconds so far; 0 where the system has no /proc."""
        return cpu_s(self.pid)

    def stop(self) -> dict[str, Any]:
        """Its last status, after a stop as by Ctrl-C."""
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=STOP_LIMIT_S)
        if self._process.returncode:
            raise NotReady(f"the worker ended with {self._process.returncode}: {_tail(self._log)}")
        status: dict[str, Any] = json.loads(output.splitlines()[-1])
        return status

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        _end(self._process)


@contextmanager
def dashboard(worker: Worker, folder: Path) -> Iterator[tuple[str, int]]:
    """The address that lets a browser in, and the id of the process: `perpline dashboard` beside this worker."""
    log = folder / "dashboard.log"
    places = ("--port", 0, "--status-port", worker.port())
    process = _perpline(log, "dashboard", "--json", "--config", worker.settings_file, *places)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise NotReady(f"the dashboard did not start: {_tail(log)}")
        yield json.loads(line)["url"], process.pid
    finally:
        _end(process)


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far; 0 where it is gone or the system has no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    """Seconds that the main thread of a process could have run, so far, but found no free processor; 0 as above."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def descendants(pid: int) -> dict[int, str]:
    """The command lines of all processes that this one started, and those started, by id; none without /proc."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
    found: dict[int, str] = {}
    wanted = {pid}
    while wanted:
        wanted = {child for child, parent in parents.items() if parent in wanted}
        for child in wanted:
            with suppress(OSError):
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def _perpline(log: Path, *arguments: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "perpline", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=log.parent,
        )


def _end(process: "subprocess.Popen[str]") -> None:
    with process:  # closes its pipe
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:400] if lines else "nothing"
