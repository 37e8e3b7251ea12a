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

    Messages of one `source` come in the exchange's order; those of two sockets with the same streams do not, and which
    is newer stands inside them. So the newest of each source is kept, and whoever takes them decides: an older message
    never replaces a newer one unread, and no look at any number is needed here.

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
        self.streams: dict[bytes, str] = {}
        """Stream by the beginning of its messages."""
        self._head = slice(0)
        self._head_of = head_of
        self._stream_of: dict[str, str] = {}
        self._unread: list[dict[str, bytes]] = []
        """By source."""
        self._received_us: list[dict[str, int]] = []
        self._decode = decode
        self._on_malformed = on_malformed
        self._only = only
        self.follow(symbols)

    def follow(self, symbols: Mapping[str, str]) -> None:
        """Keep the messages of these streams from now on, and of no other."""
        heads = {stream: self._head_of(stream) for stream in symbols}
        length = min((len(head) for head in heads.values()), default=0)
        self.streams = {
            head[:length]: stream
            for stream, head in heads.items()
            if head.index(stream.encode()) + len(stream.encode()) < length
        }
        self._head = slice(length)
        self._stream_of = {symbol: stream for stream, symbol in symbols.items()}
        for unread in self._unread:
            for stream in unread.keys() - symbols.keys():
                del unread[stream]

    def sift(self, batch: list[bytes], received_us: int, source: int = 0) -> tuple[list[bytes], Iterable[str]]:
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
        while source >= len(self._unread):
            self._unread.append({})
            self._received_us.append({})
        # Whole dictionaries at once: with hundreds of symbols many of a batch survive to here.
        kept_before = self._unread[source]
        unread = len(kept_before)
        kept_before.update(newest)
        self._received_us[source].update(dict.fromkeys(newest, received_us))
        self.superseded += kept - (len(kept_before) - unread)
        return others, newest

    def take(self, symbol: str) -> list[Event]:
        """What the newest message of a symbol from each source says, decoded now: none where none came since the last
        time or it is malformed."""
        stream = self._stream_of.get(symbol)
        taken: list[Event] = []
        if stream is None:
            return taken
        for source, unread in enumerate(self._unread):
            data = unread.pop(stream, None)
            if data is None:
                continue
            received_us = self._received_us[source][stream]
            try:
                taken.append(self._decode(data, received_us))
            except Malformed as error:
                self._on_malformed(data, received_us, error)
        return taken
