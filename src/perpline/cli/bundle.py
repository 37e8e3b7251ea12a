"""`perpline doctor --bundle`: one file for a bug report, without keys, passwords, money, positions or people."""

import asyncio
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from pydantic import SecretStr

from perpline import __version__
from perpline.bootstrap import open_store, utc_text
from perpline.cli.checks import Check, file_system
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson, PerplineError
from perpline.exchange.binance.credentials import SYSTEMD_NAME
from perpline.worker_client import fetch_status

PACKAGES = tuple(
    "aiohttp apsw asyncpg cryptography hiredis lightgbm llvmlite msgspec numba numpy onnxruntime picows "
    "prometheus-client pyarrow pydantic pydantic-core redis rich stamina structlog typer uvloop zstandard".split()
)
DECISIONS = 50
GAPS = 200
LOG_LINES = 500
LONGEST_LINE = 2_000
LARGEST_SECRET_FILE = 16_384
ENDINGS = (".zip", ".tar.gz", ".tgz")
OF_TRADING = frozenset({"trading", "orders", "risk", "reconcile", "flatten", "user stream", "mode", "alert"})
"""Actions of log lines that may tell of positions, orders and money, or who changed a mode and why."""
TOLD_OF_TRADING = frozenset(
    "event level timestamp logger action alarm severity account kind rule reason failures tries exception".split()
)
"""What is kept of such a line; of a change of the mode not the reason, which is a person's."""

ABOUT = """\
What `perpline doctor --bundle` wrote on {when}. Look into it before you send it.

about.json      versions of perpline, Python and packages, operating system
settings.json   every setting with its source; passwords, keys and amounts of money are ***
doctor.json     what `perpline doctor` found, without amounts of money
worker.json     what a running worker said of itself, without positions and money; or why none answered
database.json   schema, rows of each table, open gaps, the last decisions' statuses
spool.json      files that wait for the database
log.txt         the last lines of the log that was named by --log; of lines about trading, modes and alarms only
                what happened, without symbol, quantity, price and person

Keys, tokens, passwords, the hosts of other perpline processes and the home folder's name were replaced wherever they
stood. Hosts and names of the database and of Redis stay. Which symbols are followed, and what was decided on them, is
in it; so is whatever a line of the log says that is not perpline's own.
"""


async def write_bundle(
    file: Path, settings: Settings, checks: Sequence[Check], log_file: Path | None, now_ms: int
) -> list[str]:
    """Write the file, for its owner's eyes only, and return the names of what is in it.

    Raises NeedsPerson for a file that is there, cannot be written, or has another ending than ENDINGS.
    """
    if not file.name.endswith(ENDINGS):
        raise NeedsPerson(f"{file}: a bundle ends in {', '.join(ENDINGS)}")
    parts: dict[str, Any] = {
        "about.json": _about(settings),
        "settings.json": _settings(settings),
        "doctor.json": [_without_money(check) for check in checks],
        "worker.json": await _worker(settings),
        "database.json": await _database(settings),
        "spool.json": await asyncio.to_thread(_spools, settings.data_dir),
    }
    texts = {name: json.dumps(part, indent=1, ensure_ascii=False, default=str) + "\n" for name, part in parts.items()}
    if log_file is not None:
        texts["log.txt"] = await asyncio.to_thread(_last_lines, log_file)
    texts = {"README.txt": ABOUT.format(when=utc_text(now_ms)), **texts}
    redact = Redaction(settings, os.environ)
    contents = {name: redact(text).encode() for name, text in texts.items()}
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(_packed(file.name, contents, now_ms // 1000))
    except FileExistsError:
        raise NeedsPerson(f"{file} is there already: name another file, or remove it") from None
    except OSError as error:
        raise NeedsPerson(f"cannot write {file}: {error.strerror or error}") from None
    return list(contents)


class Redaction:
    """Replaces in a text what nobody else may read: every secret that is known here, and whatever looks like one."""

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        known = {*_settings_secrets(settings), *_environment_secrets(env), *_file_secrets(settings, env)}
        # A secret may stand in JSON, where some characters are written otherwise.
        known |= {json.dumps(secret)[1:-1] for secret in known}
        known |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in known}
        self._known = sorted((secret for secret in known if len(secret) >= 4), key=len, reverse=True)
        homes = {str(Path.home()), env.get("HOME", ""), os.path.realpath(Path.home())}
        self._homes = sorted((home.rstrip("/") for home in homes if home.rstrip("/")), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, "***")
        for pattern, instead in _LOOKS_SECRET:
            text = pattern.sub(instead, text)
        for home in self._homes:
            text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
        return text


_LOOKS_SECRET = [
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), "***"),
    (re.compile(r"(?<=://)[^\s/?#\"'@]*@(?!\s)"), "***@"),  # who, and with which password
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), r"\1 ***"),
    (
        re.compile(
            r"(?i)([\"']?[\w-]*(?:passw(?:or)?d|secret|token|api_?key|x-mbx-apikey|listen_?key|signature|credential)"
            r"[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)(?!(?:null|true|false|none)\b)[^\s\"',;&}\]]{4,}"
        ),
        r"\1***",
    ),
    (re.compile(r"\b[A-Za-z0-9]{60,}\b"), "***"),  # API keys, their secrets and listen keys have 64
    (re.compile(r"[\w.-]+(?=, process \d)"), "***"),  # the host of whoever holds a lease
]


def _settings_secrets(settings: Settings) -> Iterable[str]:
    """Every secret among the settings, and the passwords within addresses."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple | list) else [value]:
            if not isinstance(each, SecretStr):
                continue
            text = each.get_secret_value()
            if not name.endswith(("_url", "_urls")):
                yield text
                continue
            yield from _url_secrets(text)
            if name == "alert_urls":  # any part of such an address may be the token
                yield text
                yield from (part for part in re.split(r"[/?&=@:]+", text)[1:] if len(part) >= 8)


def _url_secrets(url: str) -> Iterable[str]:
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        yield url
        return
    if password:
        yield password
        yield unquote(password)
    yield from re.findall(r"(?i)[?&](?:password|passwd|pass|sslpassword|token)=([^&#]+)", url)


def _environment_secrets(env: Mapping[str, str]) -> Iterable[str]:
    for name, value in env.items():
        if re.search(r"(?i)key|secret|token|passw|credential|auth", name) and len(value) >= 6:
            yield value
        if "://" in value:
            yield from _url_secrets(value)


def _file_secrets(settings: Settings, env: Mapping[str, str]) -> Iterable[str]:
    """The lines of the key's file, and the tokens that workers and dashboards left for their users."""
    files = [settings.api_key_file] if settings.api_key_file is not None else []
    if folder := env.get("CREDENTIALS_DIRECTORY"):
        files.append(Path(folder) / SYSTEMD_NAME)
    for file in files:
        yield from (line.strip() for line in _content(file).splitlines() if line.strip())
    for file in settings.data_dir.glob("*.json"):
        yield from re.findall(r'"token"\s*:\s*"([^"]+)"', _content(file))


def _content(file: Path) -> str:
    try:
        with file.open(errors="replace") as opened:
            return opened.read(LARGEST_SECRET_FILE)
    except OSError:
        return ""


def _about(settings: Settings) -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "perpline": __version__,
        "python": sys.version,
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "processors": os.cpu_count(),
        "file_system_of_data_dir": file_system(settings.data_dir),
        "packages": packages,
    }


def _settings(settings: Settings) -> dict[str, Any]:
    shown = settings.masked()
    for name, each in shown.items():
        if name.endswith("_usdt"):
            each["value"] = "***"
    return shown


def _without_money(check: Check) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(check)
    for name in ("found", "advice"):
        if check.name in ("limits", "account"):
            told[name] = re.sub(r"\d[\d.,]*", "***", told[name])
        told[name] = re.sub(r"\d[\d.,]*(?= USDT)|(?<=a position may have )\d[\d.,]*", "***", told[name])
    return told


async def _worker(settings: Settings) -> dict[str, Any]:
    """The status of the worker on the settings' port, without positions, money and names of people."""
    try:
        facts = await fetch_status(settings.data_dir, settings.status_port)
    except NeedsPerson as error:
        return {"error": str(error)}
    if isinstance(trading := facts.get("trading"), dict):
        modes = [{name: row.get(name) for name in ("symbol", "mode", "until")} for row in trading.get("modes", [])]
        kept = {name: trading.get(name) for name in ("keys", "waiting_for_lease", "live")}
        facts["trading"] = {"modes": modes, **kept}
    for entry in facts.get("symbols", {}).values():
        if isinstance(entry, dict):
            entry.pop("position", None)
    if isinstance(universe := facts.get("universe"), dict):
        universe["leaving"] = len(universe.get("leaving") or ())  # they are those with a position
    naked = re.compile(r"(?<=positions without a stop at the exchange: ).*")
    facts["trouble"] = [naked.sub("***", str(each)) for each in facts.get("trouble") or ()]
    return facts


async def _database(settings: Settings) -> dict[str, Any]:
    try:
        store = open_store(settings.database_url.get_secret_value(), read_only=True)
        await store.open()
    except PerplineError as error:
        return {"error": str(error)}
    try:
        [[schema]] = await store.select("SELECT max(number) FROM schema_migrations")
        gaps = await store.gaps(only_open=True)
        decisions = await store.select(
            "SELECT slot, symbol, close_time, status, side, seq, model_id, engine_ver FROM signals "
            f"ORDER BY close_time DESC, symbol LIMIT {DECISIONS}"
        )
        size, _ = await store.size()
        return {
            "schema": schema,
            "bytes": size,
            "rows": await store.row_counts(),
            "open_gaps": len(gaps),
            "newest_open_gaps": msgspec.to_builtins(gaps[-GAPS:]),
            "last_decisions": [list(row) for row in decisions],
        }
    except PerplineError as error:
        return {"error": str(error)}
    finally:
        await store.close()


def _spools(data_dir: Path) -> list[dict[str, Any]]:
    return [
        {
            "folder": folder.name,
            "files": {path.name: path.stat().st_size for path in sorted(folder.glob("*.spool"))},
        }
        for folder in sorted(data_dir.glob("spool*"))
        if folder.is_dir()
    ]


def _last_lines(file: Path) -> str:
    try:
        with file.open(errors="replace") as lines:
            newest = deque((line.rstrip("\n") for line in lines), maxlen=LOG_LINES)
    except OSError as error:
        raise NeedsPerson(f"cannot read the log {file}: {error.strerror or error}") from None
    return "\n".join(_without_trading(line)[:LONGEST_LINE] for line in newest) + "\n"


def _without_trading(line: str) -> str:
    """A line about trading with only what happened; any other as it is. Both forms of the log are known."""
    try:
        row = json.loads(line)
    except ValueError:
        return _console_without_trading(line)
    if not isinstance(row, dict) or row.get("action") not in OF_TRADING:
        return line
    told = _told_of_trading(row["action"])
    return json.dumps({name: value if name in told else "***" for name, value in row.items()}, ensure_ascii=False)


_NAMED = re.compile(r"(?:^|\s)(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S*)")


def _console_without_trading(line: str) -> str:
    plain = re.sub(r"\x1b\[[\d;]*m", "", line)
    named = {each[1]: each[2] for each in _NAMED.finditer(plain)}
    action = named.get("action", "").strip("'\"")
    if action not in OF_TRADING:
        return line
    told = _told_of_trading(action)
    kept = " ".join(f"{name}={value if name in told else '***'}" for name, value in named.items())
    first = _NAMED.search(plain)
    assert first is not None
    return f"{plain[: first.start()]} {kept}"


def _told_of_trading(action: str) -> frozenset[str]:
    return TOLD_OF_TRADING - {"reason"} if action == "mode" else TOLD_OF_TRADING


def _packed(name: str, contents: Mapping[str, bytes], time_s: int) -> bytes:
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for part, content in contents.items():
                archive.writestr(part, content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as archive_tar:
            for part, content in contents.items():
                entry = tarfile.TarInfo(part)
                entry.size, entry.mtime, entry.mode = len(content), time_s, 0o600
                archive_tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
