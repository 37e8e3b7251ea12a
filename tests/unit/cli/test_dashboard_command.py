"""`perpline dashboard`: where it listens, and what it says when it does."""

from pathlib import Path

import pytest

from running import command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PERPLINE_DASHBOARD_PORT", "0")


def test_it_prints_the_address_that_lets_a_browser_in_and_ends_when_it_is_told_to() -> None:
    said = command("dashboard", "--duration", 0.1).out.strip()
    facts = command("dashboard", "--duration", 0.1, "--json").json

    assert said.startswith("http://127.0.0.1:")
    assert len(said.partition("/?token=")[2]) >= 32
    assert facts["url"].startswith(f"http://127.0.0.1:{facts['port']}/?token=")


@pytest.mark.parametrize("words", [(), ("--allow-remote",)])
def test_others_do_not_reach_it_by_mistake(words: tuple[str, ...]) -> None:
    refused = command("dashboard", "--host", "0.0.0.0", *words)

    assert (refused.code, refused.out) == (1, "")
    assert "--allow-remote with --tls-cert and --tls-key" in refused.error_line


def test_a_certificate_has_a_key_and_both_can_be_read(tmp_path: Path) -> None:
    assert command("dashboard", "--tls-cert", "cert.pem").code == 2
    refused = command("dashboard", "--tls-cert", tmp_path / "no.pem", "--tls-key", tmp_path / "no.key")
    assert (refused.code, "cannot use" in refused.error_line) == (1, True)


def test_a_port_that_is_taken_is_said() -> None:
    refused = command("dashboard", "--host", "192.0.2.1", "--allow-remote-without-tls")

    assert (refused.code, "cannot listen on 192.0.2.1" in refused.error_line) == (1, True)
