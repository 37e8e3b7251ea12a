"""The account's API key and what signs with it: found, checked, and never shown."""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson
from perpline.exchange.binance.signing import Signer, signer_of

SYSTEMD_NAME = "perpline-api-key"
"""The name of the systemd credential (LoadCredential=perpline-api-key:…)."""

_LONGEST_FILE = 16 * 1024
_API_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Credentials(Struct, frozen=True, eq=False):
    """An API key and its signer. Its text form hides both."""

    api_key: str
    signer: Signer

    @property
    def fingerprint(self) -> str:
        """12 hex digits that tell one key from another and say nothing of it."""
        return hashlib.sha256(b"perpline " + self.api_key.encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        return f"Credentials({self.signer.kind}, ***)"

    __str__ = __repr__


def load_credentials(settings: Settings, env: Mapping[str, str]) -> Credentials | None:
    """The key of the settings, else of `api_key_file`, else of the systemd credential; None where there is none.

    Raises NeedsPerson for half a key, two of them, a file that others can read or that is no key. No text of an error
    holds any of it.
    """
    api_key = settings.binance_api_key.get_secret_value().strip()
    secret = settings.binance_api_secret.get_secret_value().strip()
    if api_key or secret:
        if settings.api_key_file is not None:
            raise NeedsPerson("binance_api_key and api_key_file are both set: keep one of them")
        if not api_key or not secret:
            raise NeedsPerson("binance_api_key and binance_api_secret go together: one of them is not set")
        return make_credentials(api_key, secret, "binance_api_key, binance_api_secret")
    if settings.api_key_file is not None:
        return read_key_file(settings.api_key_file)
    folder = env.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder) / SYSTEMD_NAME
    if folder and path.is_file():
        # systemd guards its folder by an access list, which shows as a mode of group: only others are asked about.
        return read_key_file(path, forbidden=stat.S_IRWXO)
    return None


def read_key_file(path: Path, *, forbidden: int = stat.S_IRWXG | stat.S_IRWXO) -> Credentials:
    """The key in a file: the API key on the first line; below it the secret, or an Ed25519 private key in PEM."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of what is read, not of what the name points to by then
            mode = stat.S_IMODE(status.st_mode)
            if os.name == "posix" and mode & forbidden:
                raise NeedsPerson(f"{path} holds an API key and others can read it (mode {mode:04o}): chmod 600 {path}")
            content = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise NeedsPerson(f"cannot read the key file {path}: {error.strerror or type(error).__name__}") from None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = ""
    api_key, _, secret = text.strip().partition("\n")
    if not secret or len(content) > _LONGEST_FILE:
        raise NeedsPerson(
            f"{path} is no key file: the API key is expected on the first line, its secret or a private key below"
        )
    return make_credentials(api_key.strip(), secret, str(path))


def make_credentials(api_key: str, secret: str, source: str) -> Credentials:
    """The pair, checked. Raises NeedsPerson, naming the source and nothing else."""
    if not _API_KEY.fullmatch(api_key):
        raise NeedsPerson(f"{source}: the API key is not a word of letters and digits")
    try:
        return Credentials(api_key, signer_of(secret))
    except ValueError as error:
        raise NeedsPerson(f"{source}: {error}") from None
