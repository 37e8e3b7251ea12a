"""The worker's own HTTP endpoint on loopback: how the command line, the dashboard and Prometheus reach a worker.

/healthz answers anybody on this machine with ok or why not; everything else wants the token, which is in a file that
only the user can read. Pages in a browser of this machine are kept out: a request must name loopback as its host, and
as its origin if it names one.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from perpline.common.errors import NeedsPerson, TooSlow

log = structlog.get_logger("perpline.endpoint")

HOST = "127.0.0.1"
MOST_LISTENERS = 8
PING_EVERY_S = 20.0
GOODBYE_WITHIN_S = 1.0

Tell = Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]
"""(send) -> tells one listener by `send(text)` until it is cancelled; raises TooSlow where it takes too little."""


def token_file(data_dir: Path, port: int) -> Path:
    """Where the worker on this port leaves its token. Beside it, for programs that take a file with nothing else in it,
    is one with the suffix .token."""
    return data_dir / f"worker-{port}.json"


class Endpoint:
    """Serves /healthz, /status, /metrics, /events and /control while it is open.

    `status()` returns plain JSON values, `trouble()` what is wrong in words (empty: nothing), `metrics()` the text that
    Prometheus reads. `control()` only says that there is something new in the tables: no request changes anything.
    `standing_by()` names the process that leads while this one waits, which is no trouble; empty otherwise.
    `symbol_status(symbol)` is what `status()` has of one symbol alone, for /status?symbol=….
    `tell` serves each of the WebSockets on /events, of which there are at most `MOST_LISTENERS`.
    """

    def __init__(
        self,
        *,
        port: int,
        data_dir: Path,
        status: Callable[[], dict[str, Any]],
        trouble: Callable[[], list[str]],
        metrics: Callable[[], bytes],
        control: Callable[[], None] = lambda: None,
        standing_by: Callable[[], str] = lambda: "",
        symbol_status: Callable[[str], dict[str, Any]] | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.port = port
        self._data_dir = data_dir
        self._status = status
        self._trouble = trouble
        self._metrics = metrics
        self._control = control
        self._standing_by = standing_by
        self._symbol_status = symbol_status
        self._tell = tell
        self._listeners: set[web.WebSocketResponse] = set()
        self._token = secrets.token_urlsafe(24)
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Listen, and write the token file. Raises NeedsPerson where the port is taken or the file unwritable."""
        app = web.Application(client_max_size=1 << 16, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/status", self._get_status),
                web.get("/metrics", self._get_metrics),
                web.post("/control", self._post_control),
                *([web.get("/events", self._get_events)] if self._tell is not None else []),
            ]
        )
        app.on_shutdown.append(self._say_goodbye)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, self.port)
        try:
            await site.start()
        except OSError as error:
            await self._give_up()
            raise NeedsPerson(
                f"the status port {self.port} is taken: is another worker running? "
                f"choose another with --status-port or status_port ({error.strerror or error})"
            ) from None
        self.port = self._runner.addresses[0][1]
        try:
            self._write_token()
        except NeedsPerson:
            await self._give_up()
            raise

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            for path in self._token_files():
                path.unlink(missing_ok=True)

    async def _give_up(self) -> None:
        """Listen no more, and leave the token file alone: it may be that of the worker that has the port."""
        assert self._runner is not None
        await self._runner.cleanup()
        self._runner = None

    def _write_token(self) -> None:
        content = {"url": f"http://{HOST}:{self.port}", "token": self._token, "pid": os.getpid()}
        for path, text in zip(self._token_files(), (self._token, json.dumps(content)), strict=True):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                # Made with its mode, never widened in between: the token must not be readable for an instant.
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(text)
            except OSError as error:
                raise NeedsPerson(f"cannot write the token file {path}: {error.strerror or error}") from None

    def _token_files(self) -> tuple[Path, Path]:
        path = token_file(self._data_dir, self.port)
        return path.with_suffix(".token"), path

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not _is_loopback(request.headers.get("Host", "")):
            return web.json_response({"error": "this is reached as 127.0.0.1 or localhost"}, status=403)
        origin = request.headers.get("Origin")
        if origin is not None and not _is_loopback(origin.removeprefix("http://")):
            return web.json_response({"error": "this is not for pages of others"}, status=403)
        if request.path != "/healthz":
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(sent.encode(errors="surrogateescape"), self._token.encode()):
                return web.json_response({"error": "a token is wanted: Authorization: Bearer …"}, status=401)
        return await handler(request)

    async def _healthz(self, request: web.Request) -> web.Response:
        trouble = self._trouble()
        if trouble:
            return web.json_response({"ok": False, "trouble": trouble}, status=503)
        leader = self._standing_by()
        return web.json_response({"ok": True, "standing_by": leader} if leader else {"ok": True})

    async def _get_status(self, request: web.Request) -> web.Response:
        symbol = request.query.get("symbol")
        if symbol is not None and self._symbol_status is not None:
            return web.json_response(self._symbol_status(symbol))
        return web.Response(body=msgspec.json.encode(self._status()), content_type="application/json")

    async def _post_control(self, request: web.Request) -> web.Response:
        self._control()
        return web.json_response({"ok": True})

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    # ---- /events

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        assert self._tell is not None
        if len(self._listeners) >= MOST_LISTENERS:
            return web.json_response({"error": f"{MOST_LISTENERS} listen already"}, status=503)
        socket = web.WebSocketResponse(
            heartbeat=PING_EVERY_S, timeout=GOODBYE_WITHIN_S, compress=False, max_msg_size=1024, writer_limit=1 << 16
        )
        if not socket.can_prepare(request):
            return web.json_response({"error": "this is a WebSocket"}, status=426, headers={"Upgrade": "websocket"})
        self._listeners.add(socket)
        try:
            await socket.prepare(request)
            await self._serve(socket, self._tell)
        finally:
            self._listeners.discard(socket)
        return socket

    async def _serve(self, socket: web.WebSocketResponse, tell: Tell) -> None:
        """Until the listener goes, says anything, or is too slow. A bug in what is told raises, and ends it."""

        async def send(text: bytes) -> None:
            await socket.send_frame(text, WSMsgType.TEXT)

        # Hearing it answers its pings and notices its end; whatever else it says is not ours to hear.
        telling, hearing = asyncio.ensure_future(tell(send)), asyncio.ensure_future(socket.receive())
        try:
            await asyncio.wait((telling, hearing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            telling.cancel()
            hearing.cancel()
            await asyncio.wait((telling, hearing))
        if telling.cancelled():
            await socket.close()
            return
        try:
            telling.result()
        except TooSlow as error:
            log.info("listener_too_slow", reason=str(error), action="events")
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=str(error).encode(), drain=False)
        except ConnectionError:
            return  # it went while it was told something

    async def _say_goodbye(self, app: web.Application) -> None:
        for socket in [*self._listeners]:
            await socket.close(code=WSCloseCode.GOING_AWAY, drain=False)


def _is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine: a name of somebody else's may lead here too."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.lower() in ("127.0.0.1", "localhost", "[::1]")
