"""Every alarm has its page, and every page its alarm."""

import re
from pathlib import Path

import pytest

from perpline.alerts.rules import RULES, Rule

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "runbooks"
PARTS = ["What it means", "What it costs you", "Check first", "Mend", "How it clears"]


def test_each_rule_has_its_page_and_each_page_its_rule() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"README"}

    assert pages == RULES.keys()
    assert all((ROOT / rule.runbook).is_file() for rule in RULES.values())


def test_the_index_names_every_page_once_and_no_other() -> None:
    named = re.findall(r"\]\((\w+)\.md\)", (PAGES / "README.md").read_text())

    assert sorted(named) == sorted(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_page_says_what_it_means_what_it_costs_what_to_check_and_to_mend_and_how_it_clears(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text()

    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    assert text.startswith(f"# {RULES[name].title}\n")
    assert f"`{name}` ({RULES[name].severity})" in text
    assert f". {waits(RULES[name])}. Limits" in text


def waits(rule: Rule) -> str:
    if rule.is_event:
        return "It is an event: told at once"
    begins = f"after {rule.for_s:g} s" if rule.for_s else "at once"
    ends = f"after {rule.clear_s:g} s without" if rule.clear_s else "at once"
    return f"Raised {begins}, over {ends}"
