"""`perpline schema`: the form of what consumers get."""

import json
from typing import Annotated

import typer

from perpline.cli.options import JsonOption, print_json
from perpline.domain.messages import MESSAGES, json_schema


def schema(
    name: Annotated[str | None, typer.Argument(help=f"One of {', '.join(MESSAGES)}; default: all, by name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of the messages on the bus.

    Example: perpline schema signal > signal.schema.json
    """
    if name is not None and name not in MESSAGES:
        raise typer.BadParameter(f"there is no message {name!r}: there are {', '.join(MESSAGES)}")
    found = json_schema(name) if name is not None else {each: json_schema(each) for each in MESSAGES}
    if as_json:
        print_json(found)
    else:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
