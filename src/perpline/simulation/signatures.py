"""How a request proves who sends it (binance.md 4.1): HMAC-SHA256 with a shared secret, or Ed25519."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key


def signed_text(query: str, body: str = "") -> str:
    """What a REST request signs: the raw query and the raw form body, without the signature and without a joint."""
    return _without_signature(query) + _without_signature(body)


def socket_text(params: Mapping[str, str]) -> str:
    """What a request of the WebSocket API signs: its parameters by name, unescaped, without the signature."""
    return "&".join(f"{name}={params[name]}" for name in sorted(params) if name != "signature")


def is_hmac_of(secret: str, text: str, signature: str) -> bool:
    """Whether `signature` is the hex HMAC-SHA256 of `text`."""
    expected = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.lower().encode())


def is_ed25519_of(public_key: Ed25519PublicKey, text: str, signature: str) -> bool:
    """Whether `signature` is the base64 Ed25519 signature of `text`, percent-encoded or not."""
    try:
        public_key.verify(base64.b64decode(unquote(signature), validate=True), text.encode())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def ed25519_key(text: str) -> Ed25519PublicKey:
    """A public key from PEM, or from its 32 raw bytes in base64. Raises ValueError."""
    try:
        if "BEGIN" in text:
            key = load_pem_public_key(text.encode())
        else:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"no Ed25519 public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("no Ed25519 public key: it is of another kind")
    return key


def _without_signature(part: str) -> str:
    return "&".join(pair for pair in part.split("&") if not pair.startswith("signature="))
