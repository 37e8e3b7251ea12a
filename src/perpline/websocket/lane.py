"""Messages kept as bytes until somebody reads them (contracts.md, last section)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from perpline.common.errors import Malformed

Event = TypeVar("Event")


class Lane(Generic[Event]):
    """The newest message of each symbol on streams of one type: most are overtaken before anybody looks.

    A message is told by its beginning, as far as that is always the same (`head_of` a stream). One slice and one
    look-up check framing and symbol; values are decoded when taken. What is overtaken before that is counted as
    `superseded`, and what turns out to be unreadable is given to `on_malformed`.

    Heads are cut to the length of the shortest. A stream whose name does not fit into that is not in the lane, and its
    messages are routed like any other.
    """

    def __init__(
        self,
        kind: str,
        symbols: Mapping[str, str],
        head_of: Callable[[str], bytes],
        decode: Callable[[bytes, int], Event],
        on_malformed: Callable[[bytes, int, Malformed], None],
        only: bytes = b"",
    ) -> None:
        """`symbols` by stream; `kind` is what the router counts them under; only messages that hold `only` are kept."""
        self.kind = kind
        self.superseded = 0
        heads = {stream: head_of(stream) for stream in symbols}
        length = min((len(head) for head in heads.values()), default=0)
        self.streams: dict[bytes, str] = {
            head[:length]: stream
            for stream, head in heads.items()
            if head.index(stream.encode()) + len(stream.encode()) < length
        }
        """Stream by the beginning of its messages."""
        self._head = slice(length)
        self._stream_of = {symbol: stream for stream, symbol in symbols.items()}
        self._unread: dict[str, bytes] = {}
        self._received_us: dict[str, int] = {}
        self._decode = decode
        self._on_malformed = on_malformed
        self._only = only

    def sift(self, batch: list[bytes], received_us: int) -> tuple[list[bytes], Iterable[str]]:
        """Keep the newest of what belongs here; returns the others in order, and the streams that were heard."""
        stream_of, head, only = self.streams.get, self._head, self._only
        any_will_do = not only
        newest: dict[str, bytes] = {}
        others = []
        for data in batch:
            stream = stream_of(data[head])
            # From the end: what tells a forming candle stands there.
            if stream is not None and (any_will_do or data.rfind(only) >= 0):
                newest[stream] = data
            else:
                others.append(data)
        kept = len(batch) - len(others)
        for stream in [stream for stream, data in newest.items() if data[-2:] != b"}}"]:
            kept -= 1
            self._on_malformed(newest.pop(stream), received_us, Malformed(f"{stream}: a message without its end"))
        # Whole dictionaries at once: with hundreds of symbols many of a batch survive to here.
        unread = len(self._unread)
        self._unread.update(newest)
        self._received_us.update(dict.fromkeys(newest, received_us))
        self.superseded += kept - (len(self._unread) - unread)
        return others, newest

    def take(self, symbol: str) -> Event | None:
        """What the newest message of a symbol says, decoded now; None if none came since the last time or it is
        malformed."""
        stream = self._stream_of.get(symbol)
        data = None if stream is None else self._unread.pop(stream, None)
        if stream is None or data is None:
            return None
        received_us = self._received_us[stream]
        try:
            return self._decode(data, received_us)
        except Malformed as error:
            self._on_malformed(data, received_us, error)
            return None
