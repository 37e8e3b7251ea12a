"""The commands by their names, options and helps alone, for shell completion and `perpline --help`.

What they do takes seconds to import, and Tab waits for nobody. `outline.json` is made of the commands by
docs/make_reference.py; a test says when it is not what they are.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

FILE = "outline.json"


def outline_app(app: typer.Typer, commands: Iterable[str]) -> typer.Typer:
    """An app with the settings of `app` and these commands, of which it knows no more than their outline."""
    known = json.loads(resources.files("perpline.cli").joinpath(FILE).read_text(encoding="utf-8"))
    return _group(app.info, {name: known.get(name, {"help": "", "parameters": []}) for name in commands}, app)


def _group(info: Any, commands: Mapping[str, Any], callback_of: typer.Typer | None = None) -> typer.Typer:
    group = typer.Typer(
        name=info.name,
        help=info.help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=info.context_settings,
    )
    if callback_of is not None:
        group.registered_callback = callback_of.registered_callback
    for name, each in commands.items():
        if "commands" in each:
            inner = _group(typer.Typer(name=name, help=each["help"]).info, each["commands"])
            group.add_typer(inner, name=name)
        else:
            group.command(name, help=each["help"])(_stub(each["parameters"]))
    return group


def _stub(parameters: Sequence[Mapping[str, Any]]) -> Callable[..., None]:
    """A function with these parameters that does nothing: it is looked at and never called."""

    def stub(**values: object) -> None: ...

    fields = [
        inspect.Parameter(
            f"value_{number}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
        )
        for number, (kind, default, info) in enumerate(map(_parameter, parameters))
    ]
    stub.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
    stub.__annotations__ = {field.name: field.annotation for field in fields}
    return stub


def _parameter(each: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Its type, default, and what typer wants to know of it."""
    if each.get("flag"):
        return bool, False, typer.Option(*each["names"], help=each["help"])
    kind: Any = Literal[tuple(each["choices"])] if "choices" in each else Path if each.get("path") else str
    if "names" in each:
        return kind | None, None, typer.Option(*each["names"], help=each["help"])
    return list[kind] | None, None, typer.Argument(help=each["help"])
