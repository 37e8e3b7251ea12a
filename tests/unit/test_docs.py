"""The documents keep up with the code: what a person meets by name is explained, and what is named exists."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from click import Command

from perpline.cli import program
from perpline.common.config import Settings, load_settings
from perpline.domain.signal import Status
from perpline.storage.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_command_has_a_paragraph() -> None:
    program.add_commands()
    text = "\n".join(page.read_text() for page in [README, *DOCS.glob("*.md")])

    missing = [name for name in command_names(typer.main.get_command(program.app)) if f"`perpline {name}`" not in text]

    assert missing == []


def command_names(command: Command, prefix: str = "") -> Iterator[str]:
    for name, each in getattr(command, "commands", {}).items():
        if hasattr(each, "commands"):
            yield from command_names(each, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    made = runpy.run_path(str(DOCS / "make_settings.py"))["settings_page"]()

    assert (DOCS / "settings.md").read_text() == made, "run docs/make_settings.py"


def test_every_setting_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \| (.*) \|$", (DOCS / "settings.md").read_text(), re.MULTILINE)

    assert [name for name, _ in rows] == list(Settings.model_fields)
    assert [name for name, meaning in rows if not meaning] == []


def test_the_settings_file_of_the_readme_can_be_used(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    file = tmp_path / "perpline.toml"
    file.write_text(example)

    settings = load_settings(file, {"HOME": str(tmp_path)}, {})

    assert settings.symbols == ("BTCUSDT", "ETHUSDT", "SOLUSDT")


def test_every_warning_and_error_of_the_log_is_explained_and_no_other() -> None:
    explained = re.findall(r"^\*\*`(\w+)`\*\*", (DOCS / "operations.md").read_text(), re.MULTILINE)

    assert sorted(explained) == sorted({event for file in sources() for event in loud_events(file)})


def loud_events(file: Path) -> Iterator[str]:
    """Events that a module logs as warning or worse, but the simulated exchange's, which are sentences.

    The Trader logs its errors by `self._alarm(event, …)`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and file.parent.name != "simulation"
            and (node.func.attr == "_alarm" or is_loud(node.func))
        ):
            event = node.args[0]
            if isinstance(event, ast.Name) and "def _alarm(self, event: str" in file.read_text():
                continue  # within _alarm itself
            assert isinstance(event, ast.Constant), f"{file}:{node.lineno}: an event is a plain text"
            yield str(event.value)


def is_loud(call: ast.Attribute) -> bool:
    is_of_the_log = isinstance(call.value, ast.Name) and call.value.id == "log"
    return is_of_the_log and call.attr in ("warning", "error", "exception", "critical")


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def test_every_status_of_a_decision_is_explained() -> None:
    text = (DOCS / "operations.md").read_text()

    missing = {str(status) for status in Status if f"`{status}`" not in text}

    assert missing == {"ok"}  # a signal needs no excuse


async def test_every_table_is_named_in_the_readme(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    tables = list(await store.row_counts())
    await store.close()

    assert [table for table in tables if f"`{table}`" not in README.read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [target for target in targets if not re.match(r"https?://", target)]

    assert [target for target in inside if not leads_somewhere(page, target)] == []


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


def anchors(page: Path) -> set[str]:
    """The names that headings get on the usual hosts: lower case, no marks, dashes for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "ARCHITECTURE.md", *sorted(DOCS.rglob("*.md"))], ids=page_id)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`([\w./]*\w\.(?:py|sql))[`:]", page.read_text())
    to_be_made = re.compile(r"NAME|NNNN|force_order")
    names = [name for name in named if not to_be_made.search(name)]
    files = [
        str(file.relative_to(ROOT)) for part in ("src", "tests", "docs", "bench") for file in (ROOT / part).rglob("*")
    ]

    assert [name for name in names if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []


@pytest.mark.parametrize("name", ["demo", "trade", "drill"])
def test_the_pictures_ask_nobody_for_anything(name: str) -> None:
    svg = (DOCS / "images" / f"{name}.svg").read_text()

    assert re.findall(rf"(?:href|src|url)\s*[=(]\s*[\"']?(?!#|{name}-|none)[^\"')]+", svg) == []
    assert re.findall(r"https?://[^\"'\s]+", svg) == ["http://www.w3.org/2000/svg"]  # a name, not an address


def test_every_test_that_a_guarantee_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "guarantees.md").read_text()))
    written = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }

    assert named
    assert named - written == set()
