"""Where keys come from, and that they never come out."""

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.exchange.binance.credentials import load_credentials, make_credentials

KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"

posix = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")


def settings(**given: object) -> Settings:
    return load_settings(None, {"HOME": "/home/someone"}, given)


def key_file(folder: Path, text: str = f"{KEY}\n{SECRET}\n", mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_without_a_key_there_are_no_credentials(tmp_path: Path) -> None:
    assert load_credentials(settings(), {}) is None
    assert load_credentials(settings(), {"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None


def test_the_environment_gives_key_and_secret() -> None:
    env = {"PERPLINE_BINANCE_API_KEY": KEY, "PERPLINE_BINANCE_API_SECRET": SECRET, "HOME": "/home/someone"}
    found = load_credentials(load_settings(None, env, {}), env)
    assert found is not None
    assert (found.api_key, found.signer.kind) == (KEY, "hmac")


def test_a_file_of_mode_0600_gives_them_too(tmp_path: Path) -> None:
    found = load_credentials(settings(api_key_file=key_file(tmp_path)), {})
    assert found is not None
    assert found.api_key == KEY
    assert found.signer.sign(b"x") == make_credentials(KEY, SECRET, "here").signer.sign(b"x")


def test_a_file_may_hold_an_ed25519_private_key(tmp_path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    found = load_credentials(settings(api_key_file=key_file(tmp_path, f"{KEY}\n{pem}")), {})
    assert found is not None
    assert found.signer.kind == "ed25519"


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_touch_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(NeedsPerson, match="chmod 600") as caught:
        load_credentials(settings(api_key_file=path), {})
    assert KEY not in str(caught.value)


@posix
def test_the_systemd_credential_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "perpline-api-key"
    path.write_text(f"{KEY}\n{SECRET}\n")
    path.chmod(0o440)  # systemd's access list shows as a group's right
    found = load_credentials(settings(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found is not None

    path.chmod(0o444)
    with pytest.raises(NeedsPerson, match="others can read"):
        load_credentials(settings(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        KEY,
        f"{KEY}\n",
        f"two words\n{SECRET}\n",
        f"{KEY}\ntwo words\n",
        f"{KEY}\n{SECRET}\nmore\n",
        "é\né\n",
    ],
)
def test_a_file_that_is_no_key_file_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(NeedsPerson) as caught:
        load_credentials(settings(api_key_file=key_file(tmp_path, text)), {})
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="cannot read"):
        load_credentials(settings(api_key_file=tmp_path / "none"), {})
    path = key_file(tmp_path)
    path.write_bytes(b"\xff\xfe\x00" * 10_000)
    with pytest.raises(NeedsPerson, match="no key file"):
        load_credentials(settings(api_key_file=path), {})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"binance_api_key": KEY}, "go together"),
        ({"binance_api_secret": SECRET}, "go together"),
        ({"binance_api_key": KEY, "binance_api_secret": SECRET, "api_key_file": "/somewhere"}, "both set"),
    ],
)
def test_half_a_key_and_two_keys_are_refused(given: dict[str, object], match: str) -> None:
    with pytest.raises(NeedsPerson, match=match):
        load_credentials(settings(**given), {})


def test_no_text_of_credentials_or_settings_shows_the_key() -> None:
    chosen = settings(binance_api_key=KEY, binance_api_secret=SECRET)
    found = load_credentials(chosen, {})
    assert found is not None
    shown = [repr(found), str(found), f"{found}", repr([found]), repr(found.signer), repr(chosen), str(chosen)]
    shown += [json.dumps(chosen.masked()), found.fingerprint, str(vars(type(found)))]
    for text in shown:
        assert KEY not in text
        assert SECRET not in text


def test_a_fingerprint_tells_keys_apart() -> None:
    one, other = make_credentials(KEY, SECRET, "here"), make_credentials(KEY + "0", SECRET, "here")
    assert one.fingerprint == make_credentials(KEY, "other", "here").fingerprint
    assert one.fingerprint != other.fingerprint
