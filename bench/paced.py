"""A WebSocket server that keeps a rate: `python -m bench.paced SYMBOLS` prints its port and its zero of time.

`GET /RATE/MESSAGES` is answered with a handshake and so many messages of a tape, those that are due once a millisecond,
then a close frame. The update id of each book ticker says when it was sent: `FIRST_ID` + 1000 times the microseconds
since the zero (nanoseconds of the host's monotonic clock, which all its processes share) + its number within the burst,
so that no two are alike.
"""

import socket
import sys
import time

from bench.frames import BLOCK, Tape
from bench.sender import end, take_request

FIRST_ID = 10**13
BURST = 1000
"""Messages that are stamped and sent at once, at most."""
PAUSE_S = 0.001


def main() -> None:
    tape = Tape(int(sys.argv[1]))
    block = 0
    zero_ns = time.monotonic_ns()
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], zero_ns, flush=True)
        while True:
            client, _ = server.accept()
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    block = _serve(client, tape, block, zero_ns)
                except OSError as error:
                    print(f"the client left: {error}", file=sys.stderr)


def sent_us(update_id: int) -> int:
    """When a message with this id was sent, microseconds since the zero."""
    return (update_id - FIRST_ID) // 1000


def _serve(client: socket.socket, tape: Tape, block: int, zero_ns: int) -> int:
    """Answer one client; returns the block after the last one sent, for times never go back."""
    path = take_request(client)
    if path is None:
        return block
    rate, messages = map(int, path.split("/"))
    wire, update_id_at = tape.wire.data, tape.update_id_at
    sent = 0
    began_ns = time.monotonic_ns()
    while sent < messages:
        due = min(messages, (time.monotonic_ns() - began_ns) * rate // 1_000_000_000)
        if sent == due:
            time.sleep(PAUSE_S)
            continue
        first = sent % BLOCK
        if first == 0:
            tape.turn_to(block)
            block += 1
        last = min(first + due - sent, first + BURST, BLOCK)
        id_of_burst = FIRST_ID + (time.monotonic_ns() - zero_ns) // 1000 * 1000
        for number in range(first, last):
            at = update_id_at[number]
            if at is not None:
                wire[at : at + 14] = b"%d" % (id_of_burst + number - first)
        client.sendall(wire[tape.sent_before(first) : tape.sent_before(last)])
        sent += last - first
    end(client)
    return block


if __name__ == "__main__":
    main()
