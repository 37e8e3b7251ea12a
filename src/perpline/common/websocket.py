"""What every WebSocket client of ours has in common: messages put together, the end noticed, the goodbye bounded."""

import asyncio
from collections.abc import Callable

from picows import WSCloseCode, WSError, WSFrame, WSListener, WSMsgType, WSTransport

from perpline.common.clock import Clock

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Larger than any message of the market streams (!markPrice@arr of 750 symbols is 150 kB). A larger one is hostile."""

MAX_CONTROL_BYTES = 125
"""The longest payload of a control frame (RFC 6455, 5.5)."""

READ_BUFFER_BYTES = 256 * 1024
"""Large, so that a burst comes as one batch, in which newer book tickers overtake older ones."""

CLOSE_TIMEOUT_S = 2.0


class Listener(WSListener):
    """Gathers the messages of one read, stamps their arrival once, puts fragments together, and notices the end."""

    def __init__(self, receive: Callable[[list[bytes], int], None], clock: Clock) -> None:
        self.ended = asyncio.Event()
        self.reason = ""
        self._receive = receive
        self._clock = clock
        self._batch: list[bytes] = []
        self._fragments: bytearray | None = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        # Asking a frame for its type costs more than all the rest here. What is longer than any control frame may be
        # and neither begins nor continues a fragmented message is a message.
        if frame.fin and frame.payload_size > MAX_CONTROL_BYTES and self._fragments is None:
            self._batch.append(frame.get_payload_as_bytes())
        else:
            self._take_other(transport, frame)
        if frame.last_in_buffer and self._batch:
            batch, self._batch = self._batch, []
            # After our goodbye picows goes on delivering even what broke its limits.
            if not transport.is_close_frame_sent:
                self._receive(batch, self._clock.now_us())

    def _take_other(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind is WSMsgType.TEXT and frame.fin:
            self._batch.append(frame.get_payload_as_bytes())
        elif kind is WSMsgType.TEXT:
            self._fragments = bytearray(frame.get_payload_as_bytes())
        elif kind is WSMsgType.CONTINUATION and self._fragments is not None:
            self._fragments += frame.get_payload_as_bytes()
            if len(self._fragments) > MAX_MESSAGE_BYTES:
                self._fragments = None
                self.reason = f"a message of more than {MAX_MESSAGE_BYTES} bytes"
                transport.disconnect(False)
            elif frame.fin:
                self._batch.append(bytes(self._fragments))
                self._fragments = None
        elif kind is WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            code, text = int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace")
            self.reason = f"closed by the exchange: {code} {text!r}"
            transport.disconnect(True)
        elif kind is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        # Pongs and short binary frames carry nothing for us.

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.ended.set()


async def close_transport(transport: WSTransport) -> None:
    """Close within CLOSE_TIMEOUT_S, politely if the other side plays along, at once if not."""
    if transport.is_disconnected:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            if not transport.is_close_frame_sent:
                transport.send_close(WSCloseCode.OK)
            transport.disconnect(True)
            await protocol_error(transport)
    except TimeoutError:
        transport.disconnect(False)


async def protocol_error(transport: WSTransport) -> str:
    """Wait for the end of the connection; what the other side did against the protocol, empty for nothing."""
    try:
        await transport.wait_disconnected()
    except WSError as error:
        return str(error)
    return ""
