"""What perpline asks of a message bus: where signals go once they are committed."""

from typing import Protocol

from perpline.domain.signal import Message


class Bus(Protocol):
    """Publishes messages so that sending one twice has the effect of sending it once."""

    async def open(self) -> None:
        """Connect. Raises NeedsPerson for an address that cannot be meant, Unavailable for one that does not answer."""

    async def publish(self, messages: list[Message], now_ms: int) -> None:
        """Publish in order. Raises Unavailable; then any prefix may have been published, and all may be sent again."""

    async def close(self) -> None:
        """Disconnect."""
