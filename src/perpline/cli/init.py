"""`perpline init`: a few questions, and a settings file with comments that `perpline run` reads."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from msgspec import Struct

from perpline.cli.options import JsonOption, print_json
from perpline.common.config import Settings, load_settings, masked_url, user_config_file
from perpline.common.errors import NeedsPerson

KEY_FILE = "~/.config/perpline/key"
DATA_DIR = "~/.local/share/perpline"


class Answers(Struct, frozen=True, kw_only=True):
    """What a person said, as values of settings. Empty text: the default."""

    symbols: str = "top:30"
    keys_later: bool = False
    database_url: str = ""
    """Empty: perpline.db in data_dir."""
    redis_url: str = ""
    """Empty: memory://, inside the process."""
    data_dir: str = ""
    alert_urls: str = ""


class Question(Struct, frozen=True):
    """A question about the setting of this name. `default` is what Enter takes, `none` the words for an empty one."""

    name: str
    text: str
    default: str = ""
    none: str = ""


QUESTIONS = (
    Question("symbols", "Symbols, as BTCUSDT,ETHUSDT or top:N by volume", "top:30"),
    Question("keys", "Trading: paper (no keys), or keys (a key file later, for live)", "paper"),
    Question("database_url", "Database: sqlite, or postgresql://user@host/database", "sqlite"),
    Question("redis_url", "Redis for other programs: none, or redis://host:6379/0", "none"),
    Question("data_dir", "Folder of data"),
    Question("alert_urls", "Alerts go to: none, or a URL of apprise", "none"),
)


def init(
    path: Annotated[
        Path | None, typer.Option("--path", help="File to write; default: the user's.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take every default.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a few questions and write a settings file with comments. Enter takes the default.

    Keys and passwords are not asked for and have no place in the file: it says where they go.

    Example: perpline init

    Example: perpline init --yes --path perpline.toml
    """
    file = (user_config_file(os.environ) if path is None else path).expanduser()
    if file.exists() and not force:
        raise NeedsPerson(f"{file} is there already: --force replaces it, --path names another file")
    if not yes and not sys.stdin.isatty():
        raise NeedsPerson("there is no terminal to ask on: --yes takes every default")
    answers = Answers() if yes else ask(_ask_person, os.environ)
    text = settings_text(answers)
    write_settings(file, text)
    commands = next_commands(file, is_named=path is not None)
    if as_json:
        print_json({"path": str(file), "next": commands})
        return
    print(f"{file} is written. What now:")
    for command, why in zip(commands, _WHYS, strict=True):
        print(f"  {command:<40}  # {why}")
    if path is None and (before := _read_first(os.environ)) is not None:
        print(f"{before} is read instead of it: remove that, or name a file by --config.", file=sys.stderr)


_WHYS = ("whether everything that is needed is there", "what it will ask, store and need a day", "the worker")


def ask(answer: Callable[[str, str], str], env: Mapping[str, str]) -> Answers:
    """The answers, each checked as a setting is; what cannot be used is asked again.

    `answer(question, default)` returns what the person typed, or the default.
    """
    given: dict[str, str] = {}
    for question in QUESTIONS:
        default = question.default or DATA_DIR
        if question.name == "data_dir" and env.get("XDG_DATA_HOME"):
            default = str(load_settings(Path(os.devnull), {**env}, {}).data_dir)
        if question.name == "alert_urls" and question.name not in Settings.model_fields:
            continue
        while True:
            said = answer(question.text, default).strip() or default
            wrong = _wrong(question.name, said, env)
            if not wrong:
                break
            print(f"  {wrong}", file=sys.stderr)
        given[question.name] = said
    return Answers(
        symbols=given["symbols"],
        keys_later=given["keys"].lower() == "keys",
        database_url=_unless(given["database_url"], "sqlite"),
        redis_url=_unless(given["redis_url"], "none"),
        data_dir=given["data_dir"],
        alert_urls=_unless(given.get("alert_urls", "none"), "none"),
    )


def settings_text(answers: Answers) -> str:
    """The content of the file."""
    symbols = answers.symbols if answers.symbols.lower().startswith("top:") else _names(answers.symbols)
    lines = [
        _HEAD,
        "# Which symbols: a list, or the N USDT perpetuals with the largest volume.",
        _line("symbols", symbols),
        '# exclude = ["USDCUSDT"]',
        "",
        "# Where everything is kept that has no place of its own below.",
        _line("data_dir", answers.data_dir, DATA_DIR),
        "",
        "# The tables. Without it: perpline.db in data_dir. A password has no place here: ~/.pgpass has one for it.",
        _line("database_url", answers.database_url, "postgresql://perpline@localhost/perpline"),
        "",
        "# Where other programs hear the signals. Without it: nowhere, only the tables have them.",
        "# With a password leave it out here and set PERPLINE_REDIS_URL.",
        _line("redis_url", answers.redis_url, "redis://localhost:6379/0"),
    ]
    if "alert_urls" in Settings.model_fields:
        urls = [url.strip() for url in answers.alert_urls.split(",") if url.strip()]
        lines += [
            "",
            "# Where alarms go: URLs of apprise. They often hold a token; this file is for your eyes only (mode 0600).",
            _line("alert_urls", urls, ["ntfy://ntfy.sh/my-topic"]),
        ]
    lines += ["", _TRADING, _KEYS_LATER.rstrip() if answers.keys_later else _NO_KEYS.rstrip(), "", _REST]
    return "\n".join(lines)


def write_settings(file: Path, text: str) -> None:
    """Write the file, with mode 0600 from its first instant on, after it has passed `load_settings`.

    Raises NeedsPerson where it does not, or where it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".perpline-", suffix=".toml", dir=file.parent)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise NeedsPerson(f"cannot write {file}: {error.strerror or error}") from None
    made = Path(name)
    try:
        load_settings(made, {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}, {})
        made.replace(file)
    except OSError as error:
        raise NeedsPerson(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        made.unlink(missing_ok=True)


def next_commands(file: Path, *, is_named: bool) -> list[str]:
    """What to type next."""
    config = f" --config {quote(str(file))}" if is_named and file.absolute() != Path("perpline.toml").absolute() else ""
    return [f"perpline {word}{config}" for word in ("doctor", "plan", "run")]


def _ask_person(text: str, default: str) -> str:
    try:
        return input(f"{text} [{default}]: ")
    except EOFError:
        raise NeedsPerson("the input has ended: nothing was written") from None
    except KeyboardInterrupt:
        raise NeedsPerson("stopped: nothing was written") from None


def _wrong(name: str, said: str, env: Mapping[str, str]) -> str:
    """Why an answer cannot be taken; empty where it can."""
    if any(ord(character) < 32 or ord(character) == 127 for character in said):
        return "that has characters that no setting has"
    if name == "keys":
        return "" if said.lower() in ("paper", "keys") else "paper or keys"
    if (name, said.lower()) in (("database_url", "sqlite"), ("redis_url", "none"), ("alert_urls", "none")):
        return ""
    if name in ("database_url", "redis_url") and masked_url(said) != said:
        other = "~/.pgpass has it" if name == "database_url" else "PERPLINE_REDIS_URL holds it with one"
        return f"leave the password out of it: {other}"
    surroundings = {key: value for key, value in env.items() if not key.startswith("PERPLINE_")}
    value: object = [url.strip() for url in said.split(",")] if name == "alert_urls" else said
    try:
        load_settings(Path(os.devnull), surroundings, {name: value})
    except NeedsPerson as error:
        return str(error)
    return ""


def _read_first(env: Mapping[str, str]) -> str | None:
    """What is read before the user's own file, if there is something."""
    if named := env.get("PERPLINE_CONFIG"):
        return f"$PERPLINE_CONFIG ({named})"
    return "./perpline.toml" if Path("perpline.toml").is_file() else None


def _unless(said: str, word: str) -> str:
    return "" if said.lower() == word else said


def _names(symbols: str) -> list[str]:
    return [name.strip().upper() for name in symbols.split(",") if name.strip()]


def _line(name: str, value: object, example: object = "") -> str:
    """A setting; as a comment, with an example, where it has no value."""
    # JSON's texts and lists are TOML's too.
    return f"{'' if value else '# '}{name} = {json.dumps(value or example, ensure_ascii=False)}"


_HEAD = """\
# perpline: settings. Written by `perpline init`; `perpline config check` says whether it is good after a change.
# A line that begins with # is a comment: the default holds. Every setting: docs/settings.md.
"""

_TRADING = """\
# Trading begins with `perpline mode paper --reason "…"`, never by a setting. These are the limits, for paper and live.
# size_usdt = 100.0               # of a position
# max_positions = 10
# max_symbol_usdt = 1000.0
# max_total_usdt = 5000.0
# daily_loss_limit_pct = 3.0
# max_drawdown_pct = 10.0
# leverage = 3
# paper_equity_usdt = 10000.0     # what the paper account begins with
"""

_NO_KEYS = f"""\
# Paper trading needs no key. For live: a file of mode 0600, never a key in here (docs/trading.md, Keys).
# api_key_file = "{KEY_FILE}"
"""

_KEYS_LATER = f"""\
# Live trading: put the API key and its secret into a file of mode 0600, then take the # away (docs/trading.md, Keys).
#     install -m 600 /dev/null {KEY_FILE}
# api_key_file = "{KEY_FILE}"
# network = "mainnet"             # "testnet" with a key of the test network: begin there
"""

_REST = """\
# What is often wanted otherwise.
# gap_repair = "retrain"          # "live": fetch every hole at once
# lanes = 1                       # 2: every stream twice, and the loss of a connection loses nothing
# retention_days = 0              # keep so many days in the database, older ones in Parquet files
# status_port = 9720
# log_level = "info"
"""
