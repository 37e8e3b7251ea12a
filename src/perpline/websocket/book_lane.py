"""Book tickers kept as bytes until somebody reads them (contracts.md, last section)."""

from collections.abc import Callable, Mapping

from perpline.common.errors import Malformed
from perpline.domain.market import BookTicker


class BookLane:
    """Most messages are book tickers, and most of those are overtaken before anybody looks.

    `heads` are the beginnings of their messages by stream, as far as they are always the same. One slice of
    `head_length` bytes and one look-up check framing and symbol; values are decoded when taken. What is overtaken
    before that is counted as `superseded`, and what turns out to be unreadable is given to `on_malformed`.

    Heads are cut to the length of the shortest. A stream whose name does not fit into that is not in the lane, and its
    messages are routed like any other.
    """

    kind = "bookTicker"

    def __init__(
        self,
        symbols: Mapping[str, str],
        head_of: Callable[[str], bytes],
        decode: Callable[[bytes, int], BookTicker],
        on_malformed: Callable[[bytes, int, Malformed], None],
    ) -> None:
        """`symbols` by stream."""
        heads = {stream: head_of(stream) for stream in symbols}
        self.head_length = min((len(head) for head in heads.values()), default=0)
        self.streams: dict[bytes, str] = {
            head[: self.head_length]: stream
            for stream, head in heads.items()
            if head.index(stream.encode()) + len(stream.encode()) < self.head_length
        }
        """Stream by the beginning of its messages."""
        self.superseded = 0
        self._unread: dict[str, tuple[bytes, int]] = {}
        self._symbols = dict(symbols)
        self._decode = decode
        self._on_malformed = on_malformed

    def keep(self, newest: Mapping[bytes, bytes], messages: int, received_us: int) -> list[str]:
        """Keep the newest message by head, of so many that came together; returns the streams that were heard."""
        self.superseded += messages - len(newest)
        unread, streams, symbols = self._unread, self.streams, self._symbols
        heard = []
        for head, data in newest.items():
            stream = streams[head]
            if data[-2:] != b"}}":
                self._on_malformed(data, received_us, Malformed(f"{stream}: a message without its end"))
                continue
            symbol = symbols[stream]
            if symbol in unread:
                self.superseded += 1
            unread[symbol] = (data, received_us)
            heard.append(stream)
        return heard

    def take(self, symbol: str) -> BookTicker | None:
        """The newest book ticker of a symbol, decoded now; None if none came since the last time or it is malformed."""
        kept = self._unread.pop(symbol, None)
        if kept is None:
            return None
        try:
            return self._decode(*kept)
        except Malformed as error:
            self._on_malformed(*kept, error)
            return None
