"""What signals look like on a bus: names of streams, hashes and channels, and the fields of an entry (contracts.md)."""

import msgspec

from perpline.domain.signal import Message


def stream_name(slot: str, symbol: str) -> str:
    """The stream of a symbol's signals. Entry ids are `<T>-0`."""
    return f"sig:{slot}:{symbol}"


def last_name(slot: str, symbol: str) -> str:
    """The hash with the fields of the symbol's newest signal."""
    return f"last:{slot}:{symbol}"


def channel_name(message: Message) -> str:
    """Where a message is announced: `sig.{symbol}` for a signal, `sig.close`, `sig.model` … for the others."""
    return f"sig.{message.symbol}" if message.kind == "signal" else f"sig.{message.kind}"


def entry_fields(message: Message) -> dict[str, str]:
    """The members of the payload as fields of a stream entry or hash: texts as they are, all else as JSON, no nulls.

    `T` is always there. Raises ValueError for a payload that is no JSON object: a bug of whoever wrote the message.
    """
    members = msgspec.json.decode(message.payload, type=dict[str, msgspec.Raw])
    fields = {name: _text(bytes(value)) for name, value in members.items() if bytes(value) != b"null"}
    return fields | {"T": str(message.close_time)}


def _text(value: bytes) -> str:
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else value.decode()
