"""Who may ask: keys, signatures, time windows (binance.md 4.1)."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from perpline.simulation.signatures import ed25519_key, is_hmac_of, signed_text, socket_text

ED25519 = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEM = ED25519.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_the_documented_example_is_signed_as_documented():
    secret = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9"
    payload = (
        "symbol=BTCUSDT&side=BUY&type=LIMIT&quantity=1&price=9000&timeInForce=GTC&recvWindow=5000"
        "&timestamp=1591702613943"
    )

    assert is_hmac_of(secret, payload, "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9")
    assert not is_hmac_of(secret, payload + "0", "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9")


@pytest.mark.parametrize(
    ("query", "body", "text"),
    [
        ("a=1&b=2&signature=xx", "", "a=1&b=2"),
        ("", "a=1&signature=xx", "a=1"),
        ("a=1", "b=2&signature=xx", "a=1b=2"),
        ("a=1&signature=xx", "b=2", "a=1b=2"),
        ("signature=xx&a=1", "", "a=1"),
        ("s=%E4%BA%BA", "", "s=%E4%BA%BA"),
    ],
)
def test_query_and_body_are_signed_one_after_the_other_without_a_joint(query, body, text):
    assert signed_text(query, body) == text


def test_the_socket_signs_its_parameters_by_name():
    assert socket_text({"timestamp": "2", "apiKey": "k", "signature": "x", "symbol": "人USDT"}) == (
        "apiKey=k&symbol=人USDT&timestamp=2"
    )


@pytest.mark.parametrize(("key", "status", "code"), [(None, 401, -2014), ("", 401, -2014), ("nobody", 401, -2015)])
def test_a_key_nobody_has_is_refused(desk, key, status, code):
    got, body = desk.call("GET", "openOrders", key=key)

    assert (got, body["code"]) == (status, code)


def test_a_wrong_signature_is_refused_and_a_missing_one_too(desk):
    status, body = desk.call("GET", "openOrders", secret="another")
    assert (status, body["code"]) == (400, -1022)

    now = str(desk.clock.now_ms())
    answer = desk.private.call(
        "GET", "/fapi/v1/openOrders", {"timestamp": now}, key="sim-key", signed_text=f"timestamp={now}"
    )
    assert answer.status == 400
    assert b"-1102" in answer.body


@pytest.mark.parametrize(
    ("off_ms", "window", "code"),
    [
        (0, None, None),
        (999, None, None),
        (1000, None, -1021),
        (-5000, None, None),
        (-5001, None, -1021),
        (-2001, 2000, -1021),
        (-59_000, 60_000, None),
        (0, 60_001, -1131),
    ],
)
def test_a_request_is_taken_within_its_window(desk, off_ms, window, code):
    params = {} if window is None else {"recvWindow": window}
    status, body = desk.call("GET", "openOrders", timestamp=desk.clock.now_ms() + off_ms, **params)

    assert (status, body["code"] if code else None) == (400 if code else 200, code)


@pytest.mark.parametrize("timestamp", ["", "x", "-1"])
def test_a_timestamp_is_mandatory_and_a_number(desk, timestamp):
    assert desk.refused("GET", "openOrders", timestamp=timestamp) in (-1102, -1100)


def test_an_account_with_an_ed25519_key_signs_with_it(desk):
    desk.private.add_account("ed", public_key=PEM)
    text = f"timestamp={desk.clock.now_ms()}"
    signature = base64.b64encode(ED25519.sign(text.encode())).decode()

    def call(signature):
        params = {"timestamp": text.partition("=")[2], "signature": signature}
        return desk.private.call("GET", "/fapi/v1/openOrders", params, key="ed", signed_text=text).status

    assert call(signature) == 200
    assert call(signature.replace("=", "%3D").replace("/", "%2F").replace("+", "%2B")) == 200
    assert call(base64.b64encode(bytes(64)).decode()) == 400
    assert call("nonsense") == 400


def test_a_session_logs_on_with_ed25519_only(desk):
    desk.private.add_account("ed", public_key=PEM)
    params = {"apiKey": "ed", "timestamp": str(desk.clock.now_ms())}
    text = socket_text(params)
    signed = {**params, "signature": base64.b64encode(ED25519.sign(text.encode())).decode()}

    assert desk.private.authenticate(signed, key="ed", signed_text=text).status == 200
    assert desk.private.authenticate(signed, key="sim-key", signed_text=text).status == 400
    assert desk.private.authenticate(signed, key="nobody", signed_text=text).status == 401
    desk.clock.advance(60)
    assert desk.private.authenticate(signed, key="ed", signed_text=text).status == 400


def test_a_session_that_has_logged_on_signs_nothing_more(desk):
    answer = desk.private.call("GET", "/fapi/v1/openOrders", {}, key="sim-key", signed_text=None)

    assert answer.status == 200


def test_a_key_that_may_not_trade_can_look(desk):
    desk.private.add_account("reader", secret="s", can_trade=False)

    assert desk.call("GET", "openOrders", key="reader", secret="s")[0] == 200
    status, body = desk.call("DELETE", "allOpenOrders", key="reader", secret="s", symbol="BTCUSDT")
    assert (status, body["code"]) == (401, -2015)


def test_what_only_needs_a_key_needs_no_signature(desk):
    assert desk.private.call("POST", "/fapi/v1/listenKey", {}, key="sim-key", signed_text="").status == 200


def test_public_keys_are_read_from_pem_and_base64():
    raw = ED25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    assert ed25519_key(PEM).public_bytes_raw() == ed25519_key(base64.b64encode(raw).decode()).public_bytes_raw()
    for text in ("not a key", "YWJj", "-----BEGIN PUBLIC KEY-----\nYWJj\n-----END PUBLIC KEY-----"):
        with pytest.raises(ValueError, match="no Ed25519 public key"):
            ed25519_key(text)
