"""Signatures: the documentation's example, and what else is sent."""

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from perpline.exchange.binance.signing import HmacSigner, query_text, signer_of, socket_text


def pem(key: object, encryption: KeySerializationEncryption | None = None) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()).decode()


def test_the_example_of_the_documentation_is_signed_as_it_says() -> None:
    signer = HmacSigner("2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9")
    text = query_text(
        {
            "symbol": "BTCUSDT",
            "side": "BUY",
            "type": "LIMIT",
            "quantity": 1,
            "price": 9000,
            "timeInForce": "GTC",
            "recvWindow": 5000,
            "timestamp": 1591702613943,
        }
    )

    assert text == (
        "symbol=BTCUSDT&side=BUY&type=LIMIT&quantity=1&price=9000&timeInForce=GTC"
        "&recvWindow=5000&timestamp=1591702613943"
    )
    assert signer.sign(text.encode()) == "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9"


def test_a_signer_signs_every_text_anew() -> None:
    signer = signer_of("secret")
    for text in (b"one", b"two", b"one"):
        assert signer.sign(text) == hmac.new(b"secret", text, hashlib.sha256).hexdigest()


def test_names_beyond_ascii_are_percent_encoded_before_they_are_signed() -> None:
    text = query_text({"symbol": "币安人生USDT", "note": "a b&c=d"})
    assert text == "symbol=%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9FUSDT&note=a%20b%26c%3Dd"


def test_the_socket_signs_its_parameters_by_name_and_as_they_are() -> None:
    assert (
        socket_text({"timestamp": 5, "apiKey": "k", "symbol": "币USDT"})
        == "apiKey=k&symbol=币USDT&timestamp=5".encode()
    )


def test_an_ed25519_key_signs_what_its_public_half_verifies() -> None:
    key = Ed25519PrivateKey.generate()
    signer = signer_of(f"\n{pem(key)}\n")

    assert signer.kind == "ed25519"
    key.public_key().verify(base64.b64decode(signer.sign(b"timestamp=1")), b"timestamp=1")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "two words",
        "schlüssel",
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----",
        pem(generate_private_key(65537, 2048)),
        pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"password")),
    ],
)
def test_what_is_no_usable_secret_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the text is asked about below
        signer_of(secret)
    assert caught.value.__cause__ is None
    assert not secret or not any(word in str(caught.value) for word in secret.split() if len(word) > 12)
