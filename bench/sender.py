"""A WebSocket server that always has more to send: `python -m bench.sender SYMBOLS` prints its port.

`GET /N` is answered with a handshake and N messages of a tape, in chunks of 2 MB of prepared frames over a plain
socket, then a close frame. Nothing is looked at meanwhile, and whatever the client says is read at the end: a socket
closed with unread bytes would throw away what the client has not read yet.
"""

import base64
import hashlib
import re
import socket
import sys

from bench.frames import BLOCK, Tape

CLOSE_FRAME = b"\x88\x02\x03\xe8"


def main() -> None:
    tape = Tape(int(sys.argv[1]))
    block = 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            with client:
                try:
                    block = _serve(client, tape, block)
                except OSError as error:
                    print(f"the client left: {error}", file=sys.stderr)


def _serve(client: socket.socket, tape: Tape, block: int) -> int:
    """Answer one client; returns the block after the last one sent, for times never go back."""
    path = take_request(client)
    if path is None:
        return block
    left = int(path)
    while left:
        messages = min(left, BLOCK)
        tape.turn_to(block)
        client.sendall(tape.wire[: tape.sent_before(messages)].data)
        left -= messages
        block += 1
    end(client)
    return block


def take_request(client: socket.socket) -> str | None:
    """Shake hands; returns the path that was asked for, without its first stroke, None for no WebSocket client."""
    request = b""
    while b"\r\n\r\n" not in request:
        received = client.recv(65_536)
        if not received:
            return None
        request += received
    path = re.match(rb"GET /([0-9/]+) ", request)
    key = re.search(rb"(?i)\r\nsec-websocket-key:\s*(\S+)", request)
    if path is None or key is None:
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        return None
    accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    client.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    return path[1].decode()


def end(client: socket.socket) -> None:
    """Close, and read what the client said, until it has closed too."""
    client.sendall(CLOSE_FRAME)
    client.shutdown(socket.SHUT_WR)
    while client.recv(65_536):
        pass


if __name__ == "__main__":
    main()
