"""Makes docs/reference/commands.md, tables.md and redis.md from the code, and from docs/table_words.py; and, of the
commands, perpline/cli/outline.json.

.venv/bin/python docs/make_reference.py
"""

import asyncio
import inspect
import json
import re
import runpy
import tempfile
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from perpline.bus import wire
from perpline.bus.feature_stream import FeatureBatch, FeatureRow, ShardCard
from perpline.bus.redis import MAX_ENTRIES
from perpline.cli import outline as outlined
from perpline.cli import program
from perpline.domain.messages import MESSAGES, json_schema
from perpline.domain.signal import Message
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Row

FOLDER = Path(__file__).parent / "reference"
OUTLINE = Path(outlined.__file__).with_name(outlined.FILE)
MADE = "<!-- Made by docs/make_reference.py. Change the code (or docs/table_words.py) and run that. -->"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    OUTLINE.write_text(outline(), encoding="utf-8")


def pages() -> dict[str, str]:
    """Each page by its file name, as it should be."""
    return {"commands.md": commands_page(), "tables.md": tables_page(), "redis.md": redis_page()}


# ---- commands


def outline() -> str:
    """The text of perpline/cli/outline.json, as it should be."""
    return json.dumps(_outline(_program()), indent=0, ensure_ascii=False) + "\n"


def _program() -> Any:
    """All commands, in the order of their list, whichever were imported first."""
    program.add_commands()
    found: Any = typer.main.get_command(program.app)
    found.commands = {name: found.commands[name] for name in program.COMMANDS}
    return found


def _outline(group: Any) -> dict[str, Any]:
    return {
        name: {"help": _short_help(each), "commands": _outline(each)}
        if hasattr(each, "commands")
        else {"help": _short_help(each), "parameters": [_outlined(one) for one in each.params if one.name != "help"]}
        for name, each in group.commands.items()
    }


def _short_help(command: Any) -> str:
    """The first paragraph, which is what a list of commands shows."""
    return " ".join(_help(command).split("\n\n")[0].split())


def _outlined(parameter: Any) -> dict[str, Any]:
    annotation = parameter.type_descriptor.annotation
    found: dict[str, Any] = {"help": parameter.help or ""}
    if parameter.param_type_name != "argument":
        names = "/".join([*parameter.opts, *parameter.secondary_opts]) if parameter.secondary_opts else ""
        found["names"] = [names] if names else parameter.opts
    if getattr(parameter, "is_flag", False):
        found["flag"] = True
    elif typing.get_origin(annotation) is typing.Literal:
        found["choices"] = list(typing.get_args(annotation))
    elif annotation is Path:
        found["path"] = True
    return found


COMMANDS_HEAD = f"""\
# Commands

{MADE}

`perpline COMMAND` after `pipx install .`, `./run COMMAND` in a clone. Exit 0 is success, 1 failure with one line on
stderr, 2 wrong usage, 130 an interruption. Options of single settings win over environment and file
([settings](../settings.md)). `perpline --install-completion` teaches your shell the words.

"""


def commands_page() -> str:
    every = list(_commands(_program()))
    contents = "\n".join(f"* [{name}](#perpline-{name.replace(' ', '-')}): {_sentence(each)}" for name, each in every)
    return COMMANDS_HEAD + contents + "\n\n" + "\n\n".join(_command(name, each) for name, each in every) + "\n"


def _commands(command: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in getattr(command, "commands", {}).items():
        if hasattr(each, "commands"):
            yield from _commands(each, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", each


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("\f", "")


def _sentence(command: Any) -> str:
    """The first sentence of its help."""
    paragraph = " ".join(_help(command).split("\n\n")[0].split())
    return _safe(re.split(r"(?<=[.:]) (?=[A-Z])", paragraph)[0])


def _command(name: str, command: Any) -> str:
    paragraphs = [" ".join(part.split()) for part in _help(command).split("\n\n")]
    words = [_safe(part) for part in paragraphs if not part.startswith("Example:")]
    examples = [part.removeprefix("Example:").strip() for part in paragraphs if part.startswith("Example:")]
    parameters = [each for each in command.params if each.name != "help"]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    usage = " ".join(["perpline", name, *map(_in_usage, arguments)])
    text = [f"## perpline {name}", f"`{usage}`", *words]
    if parameters:
        rows = "\n".join(map(_parameter, parameters))
        text.append(f"| option | value | |\n|---|---|---|\n{rows}")
    text.append("\n".join(f"    {each}" for each in examples))
    return "\n\n".join(text)


def _in_usage(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper().strip("[].") + ("…" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _parameter(parameter: Any) -> str:
    """A row; typer brings a click of its own, whose types nobody else can name."""
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    default = parameter.default
    shown = "" if default in (None, False, True, (), "", ...) or callable(default) else f"default {default}"
    details = [_kind(parameter), shown, "required" if parameter.required else ""]
    shown_names = ", ".join(f"`{name}`" for name in names)
    return f"| {shown_names} | {_cell(', '.join(filter(None, details)))} | {_cell(parameter.help or '')} |"


KINDS = {str: "text", int: "whole number", float: "number", Path: "path"}


def _kind(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    annotation = parameter.type_descriptor.annotation
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(str(each.value) for each in annotation)
    inner = next(iter(typing.get_args(annotation)), annotation)
    words = [KINDS.get(inner, "text" if inner is list else str(inner))]
    words += [f"at least {parameter.min:g}"] if parameter.min is not None else []
    words += [f"at most {parameter.max:g}"] if parameter.max is not None else []
    words += ["several"] if parameter.multiple or parameter.nargs == -1 else []
    return ", ".join(words)


# ---- tables

TABLES_HEAD = f"""\
# Tables

{MADE}

The same in SQLite and PostgreSQL, whose types differ in name only. Times are integers, milliseconds UTC, unless µs is
said; the exchange's and ours are kept apart. Money and quantities of ours are decimal text, the market's prices floats.
Key: columns that no two rows have in common.
"""


def tables_page() -> str:
    words = runpy.run_path(str(Path(__file__).with_name("table_words.py")))
    parts = [TABLES_HEAD]
    for table, columns in asyncio.run(tables()).items():
        key = ", ".join(f"`{name}`" for _, name, _, _, _, place in sorted(columns, key=lambda row: row[5]) if place)
        rows = [
            f"| `{name}` | {kind.lower()}{'' if is_full or place else ', may be empty'} | "
            f"{_cell(meaning(words, table, name))} |"
            for _, name, kind, is_full, _, place in columns
        ]
        head = f"## {table}\n\n{words['TABLES'].get(table, '')} Key: {key}.\n\n| column | | |\n|---|---|---|\n"
        parts.append(head + "\n".join(rows))
    return "\n".join(parts[:1]) + "\n" + "\n\n".join(parts[1:]) + "\n"


def meaning(words: dict[str, Any], table: str, column: str) -> str:
    """What the column is, empty where nobody has said it."""
    return str(words["OTHERWISE"].get((table, column)) or words["COLUMNS"].get(column, ""))


async def tables() -> dict[str, list[Row]]:
    """The columns of each table of a new database: position, name, type, never empty?, default, place in the key."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "perpline.db")
        await store.open()
        try:
            names = list(await store.row_counts())
            return {name: await store.select(f"SELECT * FROM pragma_table_info('{name}')") for name in names}
        finally:
            await store.close()


# ---- Redis

REDIS_HEAD = f"""\
# Redis

{MADE}

What is where on the server that `redis_url` names. How to read it so that nothing is missed and nothing done twice:
[For consumers](../consumers.md). JSON Schemas: [docs/schemas](../schemas/signal.json), `perpline schema NAME`.

## Names

| name | kind | what | kept |
|---|---|---|---|
"""


def redis_page() -> str:
    rows = [
        (
            wire.stream_name("{slot}", "{symbol}"),
            "stream",
            "every signal of the symbol, id `<T>-0`",
            f"about {MAX_ENTRIES:,} entries",
        ),
        (wire.last_name("{slot}", "{symbol}"), "hash", "the fields of its newest signal", "until the next"),
        (wire.position_name("{symbol}"), "hash", "the fields of the newest news of its position", "until the next"),
        *((_channel(kind), "channel", _first(kind), "no") for kind in MESSAGES),
        ("feat:{slot}", "stream", "batches of features, from collectors to inference workers", "10 minutes"),
        ("feat:{slot}:shards", "hash", "for each shard the card of its collector, JSON", "until the next"),
        ("feat:{slot}:alive:{i}/{n}", "text", "which collector of the shard lives", "5 s"),
        (
            "weight:{host}:{port}:{rest_address}",
            "text",
            "the request weight that processes of one address share",
            "minutes",
        ),
    ]
    names = "\n".join(f"| `{name}` | {kind} | {_cell(what)} | {kept} |" for name, kind, what, kept in rows)
    messages = "\n\n".join(_message(kind) for kind in MESSAGES)
    internal = "\n\n".join(_struct(each) for each in (FeatureBatch, FeatureRow, ShardCard))
    return (
        f"{REDIS_HEAD}{names}\n\n{messages}\n\n## Between perpline's own processes\n\n"
        "The field `b` of an entry of `feat:{slot}` is a FeatureBatch in msgpack; a ShardCard is JSON. They belong to "
        f"one version of perpline and may change with any other.\n\n{internal}\n"
    )


def _channel(kind: str) -> str:
    message = Message(id=0, kind=kind, slot="", symbol="{symbol}", close_time=0, payload="", valid_until=0)
    return wire.channel_name(message)


def _first(kind: str) -> str:
    return str(json_schema(kind)["description"]).split(". ")[0].split("\n")[0]


def _message(kind: str) -> str:
    schema = json_schema(kind)
    description = " ".join(str(schema["description"]).split())
    rows = [
        f"| `{name}` | {_type(each, schema)} | {_cell(_about(each, schema))} |"
        for name, each in schema["properties"].items()
    ]
    head = f"## Message {kind}\n\n{_safe(description)}\n\n| field | | |\n|---|---|---|\n"
    return head + "\n".join(rows)


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if reference := part.get("$ref"):
        return dict(schema["$defs"][reference.rpartition("/")[2]])
    return part


def _type(part: dict[str, Any], schema: dict[str, Any]) -> str:
    part = _resolved(part, schema)
    if "anyOf" in part:
        return " or ".join(_type(each, schema) for each in part["anyOf"])
    if "enum" in part:
        return ", ".join(f"`{each}`" for each in part["enum"])
    words = {"string": "text", "integer": "whole number", "null": "null", "boolean": "true or false"}
    return words.get(str(part.get("type")), str(part.get("type")))


def _about(part: dict[str, Any], schema: dict[str, Any]) -> str:
    part_of = _resolved(part, schema)
    text = str(part.get("description") or part_of.get("description", ""))
    inner = part_of.get("properties", {})
    described = [f"`{name}`: {each.get('description', '')}" for name, each in inner.items()]
    return " ".join([" ".join(text.split()), *described])


def _struct(kind: type) -> str:
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): ([^=\n]+?)(?: = .*)?\n(?:    """(.*?)""")?', source, re.MULTILINE | re.DOTALL)
    rows = [f"| `{name}` | {_code(kind_of)} | {_cell(' '.join(text.split()))} |" for name, kind_of, text in found]
    head = f"### {kind.__name__}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n| field | | |\n|---|---|---|\n"
    return head + "\n".join(rows)


def _cell(text: str) -> str:
    return _safe(" ".join(text.split())).replace("|", "\\|")


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _safe(text: str) -> str:
    """Angle brackets are words here, not HTML, and stars no emphasis."""
    return re.sub(r"<(?=[A-Za-z])(?![^`]*`)", "&lt;", text)


if __name__ == "__main__":
    main()
