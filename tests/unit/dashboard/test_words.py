"""Every text of the page is there in both languages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import perpline

APP = Path(perpline.__file__).parent / "dashboard" / "static" / "app"
SCRIPTS = sorted(APP.rglob("*.js"))
LITERAL_KEY = re.compile(
    r"""\bt(?:\.has)?\(\s*"([a-z_]+\.[^"]+)"|\bt(?:\.has)?\(\s*[\w.]+ \? "([a-z_]+\.[^"]+)" : "([a-z_]+\.[^"]+)\""""
)


def test_both_languages_have_the_same_words() -> None:
    assert sorted(words("ko")) == sorted(words("en"))


def test_no_word_is_empty() -> None:
    assert [(language, key) for language in ("en", "ko") for key, text in words(language).items() if not text] == []


def test_words_have_the_same_places_for_values_in_both_languages() -> None:
    english, korean = words("en"), words("ko")
    assert {key: places(text) for key, text in korean.items()} == {key: places(text) for key, text in english.items()}


def test_korean_is_korean() -> None:
    """But for names that are the same in Korean: text without a Korean letter has been forgotten."""
    english = {key: text for key, text in words("ko").items() if not re.search("[가-힣]", text)}
    assert {key: text for key, text in english.items() if text != words("en")[key]} == {}


@pytest.mark.parametrize("script", SCRIPTS, ids=[str(each.relative_to(APP)) for each in SCRIPTS])
def test_every_word_that_a_script_names_is_there(script: Path) -> None:
    named = {key for found in LITERAL_KEY.findall(code_of(script)) for key in found if key}
    assert sorted(named - set(words("en"))) == []


def test_every_status_of_a_decision_has_words() -> None:
    from perpline.domain.signal import Status

    kinds = ("status", "status_long")
    assert (
        sorted(f"{kind}.{status}" for kind in kinds for status in Status if f"{kind}.{status}" not in words("en")) == []
    )


def words(language: str) -> dict[str, str]:
    return dict(flat(json.loads((APP / "words" / f"{language}.json").read_text(encoding="utf-8"))))


def flat(part: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in part.items():
        found += flat(value, f"{before}{name}.") if isinstance(value, dict) else [(f"{before}{name}", value)]
    return found


def places(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", text))


def code_of(script: Path) -> str:
    """Without whole lines of comment."""
    return "\n".join(line for line in script.read_text().splitlines() if not line.startswith("//"))
