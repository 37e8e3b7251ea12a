"""The ways to people: whatever apprise knows, and a queue before each that outlives a channel that is away."""

import asyncio
import logging
import random
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import unquote

import structlog
from pydantic import SecretStr

from perpline.alerts.messages import Waiting, merge, messages_of
from perpline.alerts.standing import Note
from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.errors import NeedsPerson, Unavailable

log = structlog.get_logger("perpline.alerts")

SEND_TIMEOUT_S = 20.0
GATHER_S = 2.0
"""What is found within so long after the first goes out in the same messages."""
MOST_A_MINUTE = 10
"""Messages of one channel. What comes meanwhile waits and is grouped with what follows."""
MOST_WAITING = 5_000
"""Notes of one channel; of more the oldest are dropped, and the next message says how many."""
LONGEST_WAIT_S = 300.0
_SECRET_PIECE = re.compile(r"[A-Za-z0-9]{4,}")
_TONES = {"critical": "failure", "warning": "warning", "info": "info", "over": "success"}


class Channel(Protocol):
    """A way to tell somebody."""

    label: str
    """For logs and tables: what kind it is and its number, and nothing of its address."""
    key: str
    """The same for the same address, and tells nothing of it: by it a restarted process knows what still waits."""

    async def send(self, title: str, body: str, tone: str) -> None:
        """Raises Unavailable where it was not taken; its text holds nothing of the address."""


def open_channels(urls: Sequence[SecretStr]) -> list[Channel]:
    """A channel for each URL of the setting `alert_urls`. Raises NeedsPerson for one that apprise does not know."""
    return [AppriseChannel(url.get_secret_value(), number) for number, url in enumerate(urls, 1)]


class AppriseChannel:
    """A URL of apprise, say discord://… or json://host. Importing apprise takes 0.2 s, and only who uses it pays."""

    def __init__(self, url: str, number: int) -> None:
        try:
            from apprise import Apprise
        except ModuleNotFoundError as error:
            if error.name != "apprise":
                raise
            raise NeedsPerson("alert_urls needs one more package: pip install 'perpline[notify]'") from None
        _keep_quiet()
        scheme = url.split("://", 1)[0].lower()
        self.label = f"{scheme} (alert_urls, number {number})"
        self.key = sha256(url.encode()).hexdigest()[:16]
        self._url = url
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what apprise imports, which is not ours to mend
            self._service: Any = Apprise.instantiate(url)
        if self._service is None:
            raise NeedsPerson(f"number {number} of alert_urls ({scheme}://…) is no address that apprise understands")

    async def send(self, title: str, body: str, tone: str) -> None:
        heard = _Heard()
        logging.getLogger("apprise").addHandler(heard)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                taken = await self._service.async_notify(title=title, body=body, notify_type=_TONES[tone])
        except TimeoutError:
            raise Unavailable(f"no answer within {SEND_TIMEOUT_S:g} s") from None
        except Exception as error:  # 130 services of others: whatever one raises, the message was not taken
            raise Unavailable(redacted(f"{type(error).__name__}: {error}", self._url)) from None
        finally:
            logging.getLogger("apprise").removeHandler(heard)
        if not taken:
            raise Unavailable(redacted(heard.said, self._url) or "it was not taken, and apprise does not say why")


class _Heard(logging.Handler):
    """Keeps the last thing that apprise complained of while a message was under way."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = " ".join(record.getMessage().split())[:300]


def _keep_quiet() -> None:
    """Their log lines may hold addresses with tokens. What is wrong is told by us, redacted."""
    for name in ("apprise", "urllib3"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def redacted(text: str, url: str) -> str:
    """The text with every piece of the URL that may be secret replaced by ***."""
    rest = unquote(url.split("://", 1)[-1])
    whole = [url, rest, url.split("://", 1)[-1], *re.split(r"[/?&=@:]", rest), *_SECRET_PIECE.findall(rest)]
    for piece in sorted({each for each in whole if len(each) >= 4}, key=len, reverse=True):
        text = text.replace(piece, "***")
    return text


class Courier:
    """Brings notes to one channel: grouped, not too many a minute, and again until they are taken.

    At least once: a process that dies between sending and writing that down sends that message again.
    """

    def __init__(
        self,
        channel: Channel,
        clock: Clock,
        rng: random.Random,
        *,
        where: str,
        runbook_url: str = "",
        waiting: Iterable[Note] = (),
        on_sent: Callable[[Sequence[Note]], None] = lambda notes: None,
        gather_s: float = GATHER_S,
    ) -> None:
        self.channel = channel
        self._clock = clock
        self._rng = rng
        self._where = where
        self._runbook_url = runbook_url
        self._on_sent = on_sent
        self._gather_s = gather_s
        self._waiting: Waiting = {}
        self._being_told: tuple[Note, ...] = ()
        self._dropped = 0
        self._failures = 0
        self._sent_s: deque[float] = deque(maxlen=MOST_A_MINUTE)
        self._woken = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self.put(list(waiting))

    @property
    def is_failing(self) -> bool:
        """Whether the last message was not taken."""
        return self._failures > 0

    @property
    def waiting(self) -> list[Note]:
        """What nobody has been told here, oldest first."""
        return list(self._waiting.values())

    def put(self, notes: Sequence[Note]) -> None:
        """Have them told."""
        if not notes:
            return
        for note in notes:
            merge(self._waiting, note, self._being_told)
        while len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self._dropped += 1
        self._woken.set()

    async def run(self) -> None:
        """Tell what waits and what comes, until cancelled."""
        while True:
            await self._woken.wait()
            await self._clock.sleep_wall(self._gather_s)
            while self._waiting:
                await self._clock.sleep_wall(self._must_wait_s())
                if not await self.send_one():
                    await self._clock.sleep_wall(backoff_s(self._failures, self._rng, LONGEST_WAIT_S))
            self._woken.clear()

    async def send_one(self) -> bool:
        """Send the most urgent message of what waits; whether it was taken, or there was nothing."""
        async with self._one_at_a_time:
            if not self._waiting:
                return True
            message = messages_of(self.waiting, self._where, self._dropped, self._runbook_url)[0]
            self._sent_s.append(self._clock.wall_s())
            self._being_told = message.notes
            try:
                await self.channel.send(message.title, message.body, message.tone)
            except Unavailable as error:
                self._failures += 1
                if self._failures == 1:
                    log.warning("alert_not_sent", channel=self.channel.label, reason=str(error), action="alert")
                return False
            finally:
                self._being_told = ()
            if self._failures:
                log.info("alerts_are_sent_again", channel=self.channel.label, failures=self._failures, action="alert")
            self._failures = self._dropped = 0
            told = {id(note) for note in message.notes}
            self._waiting = {key: note for key, note in self._waiting.items() if id(note) not in told}
        self._on_sent(message.notes)
        return True

    def _must_wait_s(self) -> float:
        if len(self._sent_s) < MOST_A_MINUTE:
            return 0.0
        return max(0.0, self._sent_s[0] + 60.0 - self._clock.wall_s())
