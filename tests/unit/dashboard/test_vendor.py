"""What the dashboard's page uses of others is what we say it is."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import perpline

VENDOR = Path(perpline.__file__).parent / "dashboard" / "static" / "vendor"
MANIFEST: dict[str, Any] = json.loads((VENDOR / "MANIFEST.json").read_text())
FILES = [(package["name"], each) for package in MANIFEST["packages"] for each in package["files"]]
NOT_CODE = {"MANIFEST.json", "README.md"}


@pytest.mark.parametrize(("name", "each"), FILES, ids=[f"{name}-{each['file']}" for name, each in FILES])
def test_a_vendored_file_is_the_one_that_was_vendored(name: str, each: dict[str, Any]) -> None:
    found = base64.b64encode(hashlib.sha512((VENDOR / each["file"]).read_bytes()).digest()).decode()
    assert found == each["sha512"], f"{each['file']} of {name} was changed; vendor/README.md says how it is made"


def test_every_vendored_file_is_in_the_manifest() -> None:
    there = {path.name for path in VENDOR.iterdir() if path.is_file()} - NOT_CODE
    assert there == {each["file"] for _, each in FILES}


@pytest.mark.parametrize("package", MANIFEST["packages"], ids=[each["name"] for each in MANIFEST["packages"]])
def test_a_vendored_package_has_its_licence_beside_it(package: dict[str, Any]) -> None:
    text = (VENDOR / package["licence_file"]).read_text()
    assert {"Apache-2.0": "Apache License", "MIT": "MIT License", "0BSD": "Permission to use"}[
        package["licence"]
    ] in text


def test_the_notice_that_the_charts_ask_for_is_shown_on_the_page() -> None:
    charts = next(each for each in MANIFEST["packages"] if each["name"] == "lightweight-charts")
    _, copyright_line = (VENDOR / charts["notice_file"]).read_text().splitlines()
    shown = (VENDOR.parent / "app" / "main.js").read_text()
    assert copyright_line.removesuffix(" https://www.tradingview.com/") in shown
    assert 'href="https://www.tradingview.com/"' in shown


def test_the_one_style_that_a_vendored_file_inserts_is_the_one_that_is_allowed() -> None:
    """lightweight-charts makes a <style> for its logo: the server allows exactly that text, by its hash."""
    code = (VENDOR / "lightweight-charts.js").read_text()
    inserted = re.findall(r'createElement\("style"\),this\.\w+\.innerText="([^"]*)"', code)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inserted]
    assert MANIFEST["style_sources"] == [f"'sha256-{each}'" for each in hashes]


def test_no_vendored_file_says_where_on_the_network_it_came_from() -> None:
    text = (VENDOR / "MANIFEST.json").read_text() + (VENDOR / "README.md").read_text()
    assert re.findall(r"https?://[^\s)>\"]*regist[^\s)>\"]*", text) == []
