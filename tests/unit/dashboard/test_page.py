"""The page keeps what its Content-Security-Policy asks, before a browser has to say so."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import perpline
from perpline.alerts.rules import RULES

STATIC = Path(perpline.__file__).parent / "dashboard" / "static"
SCRIPTS = sorted((STATIC / "app").rglob("*.js"))
IDS = [str(each.relative_to(STATIC)) for each in SCRIPTS]
NAMED_ADDRESSES = {"https://www.tradingview.com/"}
"""A link that the licence of the charts asks for."""


def test_the_page_has_no_script_and_no_style_of_its_own() -> None:
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page) == []


def test_what_the_page_loads_is_there() -> None:
    page = (STATIC / "index.html").read_text()
    named = re.findall(r'(?:src|href)="/([^"]+)"', page)
    assert [name for name in named if not (STATIC / name).is_file()] == []
    assert len(named) >= 4


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_a_script_imports_files_that_are_there(script: Path) -> None:
    named = re.findall(r'^import [^"]*"([^"]+)";', code_of(script), re.MULTILINE)
    assert [name for name in named if not name.startswith(".")] == [], "a bare import needs an import map"
    assert [name for name in named if not (script.parent / name).resolve().is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_a_script_asks_no_other_host_and_makes_no_style(script: Path) -> None:
    text = code_of(script)
    assert set(re.findall(r"https?://[\w./-]+", text)) - NAMED_ADDRESSES == set()
    assert re.findall(r"""\sstyle="|createElement\(["']style|innerHTML|\beval\(|new Function""", text) == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_every_script_can_be_parsed(tmp_path: Path) -> None:
    bad = []
    for script in SCRIPTS:
        module = tmp_path / f"{script.stem}.mjs"
        module.write_text(script.read_text())
        done = subprocess.run(["node", "--check", str(module)], capture_output=True, text=True, check=False)
        if done.returncode:
            bad.append(f"{script.name}: {done.stderr}")
    assert bad == []


def test_every_page_of_the_navigation_is_there() -> None:
    names = re.findall(r'\{ name: "(\w+)", key: ', (STATIC / "app" / "main.js").read_text())
    assert len(names) >= 9
    assert [name for name in names if not (STATIC / "app" / "pages" / f"{name}.js").is_file()] == []


def test_the_log_knows_every_alarm_that_has_a_runbook() -> None:
    found = re.search(r"ALARMS = new Set\(\[(.*?)\]\)", (STATIC / "app" / "pages" / "log.js").read_text(), re.DOTALL)
    assert found is not None
    assert re.findall(r'"(\w+)"', found[1]) == list(RULES)


def code_of(script: Path) -> str:
    """Without whole lines of comment."""
    return "\n".join(line for line in script.read_text().splitlines() if not line.startswith("//"))
