"""`perpline dashboard`: where it listens, and what it says when it does."""

import stat
import webbrowser
from pathlib import Path

import pytest

from running import command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PERPLINE_DASHBOARD_PORT", "0")


def test_it_prints_the_address_that_lets_a_browser_in_and_ends_when_it_is_told_to() -> None:
    facts = command("dashboard", "--duration", 0.1, "--json").json

    assert facts["url"].startswith(f"http://127.0.0.1:{facts['port']}/?token=")
    assert len(facts["url"].partition("/?token=")[2]) >= 32


def test_the_token_goes_to_no_journal_and_to_no_ones_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, str]] = []

    def opened(address: str) -> None:
        for path in (Path(address.removeprefix("file://")), *tmp_path.glob("*.url")):
            seen.append((path.name, stat.S_IMODE(path.stat().st_mode), path.read_text()))

    monkeypatch.setattr(webbrowser, "open", opened)
    done = command("dashboard", "--duration", 0.1, "--open")

    page, address = seen
    assert "token=" not in done.out + done.err
    assert address[2].partition("token=")[2].strip() not in done.out + done.err
    assert [mode for _, mode, _ in seen] == [0o600, 0o600]
    assert str(tmp_path / address[0]) in done.out
    assert address[2].startswith("http://127.0.0.1:")
    assert address[2].strip() in page[2]
    assert [*tmp_path.glob("dashboard-*")] == []


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
