"""Makes docs/settings.md from the settings and their docstrings in perpline/common/config.py.

.venv/bin/python docs/make_settings.py
"""

import ast
import inspect
import json
from pathlib import Path
from typing import Any

from perpline.common.config import PREFIX, Settings

PAGE = Path(__file__).parent / "settings.md"

HEAD = """\
# Settings

<!-- Made by docs/make_settings.py from src/perpline/common/config.py. Change it there and run that. -->

From four places, the first that has it wins: an option of the command, an environment variable, the settings file, the
default. The file is `--config FILE`, else `$PERPLINE_CONFIG`, else `./perpline.toml`, else
`~/.config/perpline/perpline.toml`. The variable of a setting is `PERPLINE_` and its name in capitals:
`{prefix}SYMBOLS=BTCUSDT,ETHUSDT`. A name that is not listed here is refused, with a suggestion.

`perpline config show` prints each setting with its value and where it came from (passwords masked);
`perpline config check` says whether they can be used, and if not, why.

{preface}

| setting | value | default | meaning |
|---|---|---|---|
"""


def main() -> None:
    PAGE.write_text(settings_page(), encoding="utf-8")


def settings_page() -> str:
    """The page as it should be."""
    meanings = _docstrings()
    preface = (inspect.getdoc(Settings) or "").split("\n\n", 1)[1].replace("\n", " ")
    rows = [
        f"| `{name}` | {_values(schema)} | {_default(name)} | {meanings.get(name, '')} |"
        for name, schema in Settings.model_json_schema()["properties"].items()
    ]
    return HEAD.format(prefix=PREFIX, preface=preface) + "\n".join(rows) + "\n"


def _docstrings() -> dict[str, str]:
    """The string below each field, on one line. Python keeps it only in the source."""
    [settings] = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(settings, ast.ClassDef)
    found = {}
    for field, below in zip(settings.body, settings.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(below.value.value).split()).replace("|", "\\|")
    return found


def _values(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_values(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema["type"] == "array":
        return "list of text"
    if schema.get("format") == "path":
        return "path"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = words.get(schema["type"], "none")
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if least is None or most is None:
        return kind
    return f"{kind}, {'above ' if 'exclusiveMinimum' in schema else ''}{least:,} to {most:,}"


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.is_required():
        return "see there"
    default = field.default
    if default is None:
        return "none"
    secret = getattr(default, "get_secret_value", None)
    value = secret() if secret else default
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


if __name__ == "__main__":
    main()
