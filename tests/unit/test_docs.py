"""The documents keep up with the code: what a person meets by name is explained, and what is named exists."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def test_what_is_installed_into_a_clone_stays_the_clone() -> None:
    """Without -e a copy takes its place, and ./run would go on with old code after a git pull."""
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]

    assert [page.name for page in pages if "pip install '.[" in page.read_text()] == []


def test_every_setting_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \| (.*) \|$", (DOCS / "settings.md").read_text(), re.MULTILINE)

    assert [name for name, _ in rows] == list(Settings.model_fields)
    assert [name for name, meaning in rows if not meaning] == []


@pytest.mark.parametrize("name", ["commands.md", "tables.md", "redis.md"])
def test_the_reference_is_what_the_code_says(name: str) -> None:
    made = runpy.run_path(str(DOCS / "make_reference.py"))["pages"]()

    assert (DOCS / "reference" / name).read_text() == made[name], "run docs/make_reference.py"


def test_the_outline_that_completion_reads_is_what_the_commands_are() -> None:
    made = runpy.run_path(str(DOCS / "make_reference.py"))["outline"]()

    assert (ROOT / "src/perpline/cli/outline.json").read_text() == made, "run docs/make_reference.py"


async def test_every_table_and_column_has_words_and_no_words_are_about_none(tmp_path: Path) -> None:
    made = runpy.run_path(str(DOCS / "make_reference.py"))
    words = runpy.run_path(str(DOCS / "table_words.py"))
    columns = {table: [row[1] for row in rows] for table, rows in (await made["tables"]()).items()}

    assert sorted(words["TABLES"]) == sorted(columns), "docs/table_words.py"
    silent = [
        (table, name) for table, names in columns.items() for name in names if not made["meaning"](words, table, name)
    ]
    assert silent == [], "docs/table_words.py"
    assert set(words["COLUMNS"]) - {name for names in columns.values() for name in names} == set()
    assert [each for each in words["OTHERWISE"] if each[1] not in columns.get(each[0], [])] == []


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


@pytest.mark.parametrize("name", ["demo", "trade", "top", "drill"])
def test_the_pictures_ask_nobody_for_anything(name: str) -> None:
    svg = (DOCS / "images" / f"{name}.svg").read_text()

    assert re.findall(rf"(?:href|src|url)\s*[=(]\s*[\"']?(?!#|{name}-|none)[^\"')]+", svg) == []
    assert re.findall(r"https?://[^\"'\s]+", svg) == ["http://www.w3.org/2000/svg"]  # a name, not an address


@pytest.mark.parametrize("page", ["guarantees.md", "traps.md"])
def test_every_test_that_a_guarantee_or_a_trap_names_exists(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / page).read_text()))
    written = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }

    assert named
    assert named - written == set()


def test_every_trap_of_the_exchange_names_a_test() -> None:
    rows = re.findall(r"^\| (?!trap |---)(.*) \|$", (DOCS / "traps.md").read_text(), re.MULTILINE)

    assert rows
    assert [row for row in rows if "`test_" not in row.rpartition(" | ")[2]] == []


def test_every_page_is_in_the_contents_of_the_site() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]

    assert sorted(leaves(site["nav"])) == sorted(pages)


def test_the_site_is_built_without_a_warning_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="zensical is not installed (extra docs)")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)

    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert (built.returncode, "Warning" in built.stdout + built.stderr) == (0, False), built.stdout + built.stderr
    asked = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.?https?://[^\s>]+")
    assert [each for page in (tmp_path / "site").rglob("*.html") for each in asked.findall(page.read_text())] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_command_lines_of_the_pages_are_commands_with_their_options(page: Path) -> None:
    outline = json.loads((ROOT / "src/perpline/cli/outline.json").read_text())
    lines = re.findall(
        r"^ +(?:\./run|perpline) ([a-z]+(?: .*)?)$|`perpline ([a-z][^`]*)`", page.read_text(), re.MULTILINE
    )
    wrong = [wrong for one, other in lines if (wrong := unknown_word(outline, (one or other).partition("   ")[0]))]

    assert wrong == []


def unknown_word(outline: dict[str, Any], line: str) -> str:
    """The command or option in a command line that there is not; empty where all are known."""
    words = re.split(r" [|>&;#]|\$\(", line)[0].split()
    if words[0] in ("test", "check", "fix", "bench", "lock", "help") or words[0] not in outline:
        return "" if words[0] in ("test", "check", "fix", "bench", "lock", "help") else line
    known = outline[words.pop(0)]
    if "commands" in known and words:
        known = known["commands"].get(words[0], {})
    options = {
        name for each in known.get("parameters", []) for names in each.get("names", []) for name in names.split("/")
    }
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    return line if named - options - {"--help"} else ""


def test_the_korean_readme_has_every_part_command_table_and_picture_of_the_english_one() -> None:
    english, korean = README.read_text(), (ROOT / "README.ko.md").read_text()
    korean = korean.replace("-ko.png", ".png")  # a page of the dashboard may be shown in Korean

    for pattern in (
        r"`perpline (\w+(?: \w+)?)`",
        r"`([a-z]+_[a-z_0-9]+)`",
        r"!\[[^]]*\]\(([^)]+)\)",
        r"\]\((docs/[^)#]+)",
    ):
        assert set(re.findall(pattern, english)) - set(re.findall(pattern, korean)) == set()
    assert len(re.findall("^## ", korean, re.MULTILINE)) == len(re.findall("^## ", english, re.MULTILINE))


def leaves(nav: object) -> Iterator[str]:
    """The files that a tree of contents names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        yield from (leaf for part in nav.values() for leaf in leaves(part))
    elif isinstance(nav, list):
        yield from (leaf for part in nav for leaf in leaves(part))
