"""Signatures of private requests (binance.md 4.1 and 6): HMAC-SHA256 as hex, Ed25519 as base64."""

import base64
import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import quote

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Signer(Protocol):
    """Signs texts with a secret that nothing else sees."""

    kind: Literal["hmac", "ed25519"]

    def sign(self, text: bytes) -> str: ...


class HmacSigner:
    """HMAC-SHA256 with the key's secret, lower-case hex."""

    kind: Literal["hmac", "ed25519"] = "hmac"

    def __init__(self, secret: str) -> None:
        # The key's part of the digest is computed once.
        self._begun = hmac.new(secret.encode(), digestmod=sha256)

    def sign(self, text: bytes) -> str:
        digest = self._begun.copy()
        digest.update(text)
        return digest.hexdigest()


class Ed25519Signer:
    """Ed25519 with a private key, base64."""

    kind: Literal["hmac", "ed25519"] = "ed25519"

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key

    def sign(self, text: bytes) -> str:
        return base64.b64encode(self._key.sign(text)).decode()


def signer_of(secret: str) -> Signer:
    """The signer for an HMAC secret or for an Ed25519 private key in PEM. Raises ValueError, without a word of the
    secret, for another key, an encrypted one, or a text that is neither."""
    text = secret.strip()
    if not text.startswith("-----BEGIN"):
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("the secret is no single word of ASCII characters")
        return HmacSigner(text)
    # Imported here: it takes a tenth of a second, and whoever has no such key can do without.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Their own texts may quote what they could not read.
        raise ValueError("the private key is no PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the private key is not of the kind Ed25519")
    return Ed25519Signer(key)


def query_text(params: Mapping[str, str | int]) -> str:
    """The parameters as they are signed and sent over REST, in their order, UTF-8 and percent-encoded."""
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in params.items())


def socket_text(params: Mapping[str, str | int]) -> bytes:
    """The parameters as they are signed for the WebSocket API: sorted by name, not encoded."""
    return "&".join([f"{name}={params[name]}" for name in sorted(params)]).encode()
