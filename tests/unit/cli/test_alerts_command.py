"""`perpline alerts` as a person types it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from perpline.alerts.rules import RULES
from perpline.common.config import load_settings
from perpline.storage.sqlite import SqliteStore
from running import command


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"json://127.0.0.1:{server.server_address[1]}/TOKENvalue", taken
        server.shutdown()
        thread.join()


def config(folder: Path, **values: object) -> Path:
    path = folder / "perpline.toml"
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in {"data_dir": str(folder), **values}.items()]
    path.write_text("".join(lines))
    return path


def test_rules_tells_each_alarm_with_its_limit_under_these_settings_and_its_page(tmp_path: Path) -> None:
    file = config(tmp_path, alert_weight_pct=70, alert_patience=2)

    rules = {row["name"]: row for row in command("alerts", "rules", "--json", "--config", file).json["rules"]}

    assert rules.keys() == RULES.keys()
    assert rules["weight_high"]["when"] == "above 70 % of the exchange's limit, or blocked"
    assert rules["stream_stale"]["for_s"] == 20
    assert rules["mode_changed"]["clear_s"] is None
    assert "stream_stale" in command("alerts", "rules", "--config", file).out


def test_a_test_message_says_which_channel_failed_and_nothing_of_its_address(
    tmp_path: Path, receiver: tuple[str, list[dict[str, Any]]]
) -> None:
    url, taken = receiver
    file = config(tmp_path, alert_urls=[url, "json://127.0.0.1:9/TOKENvalue"])

    ended = command("alerts", "test", "--json", "--config", file)

    assert ended.code == 1
    [good, bad] = ended.json["channels"]
    assert good == {"channel": "json (alert_urls, number 1)", "error": ""}
    assert "Connection error" in bad["error"]
    assert [message["title"] for message in taken] == ["[test] perpline alerts"]
    assert "TOKENvalue" not in ended.out + ended.err + command("config", "show", "--config", file).out
    assert command("alerts", "test", "--config", config(tmp_path, alert_urls=[url])).code == 0


def test_with_nobody_to_tell_a_test_says_what_to_set(tmp_path: Path) -> None:
    ended = command("alerts", "test", "--config", config(tmp_path))

    assert ended.code == 1
    assert ended.error_line.startswith("perpline: alert_urls names nobody to tell")


@pytest.mark.parametrize("urls", [["no address"], [3], "no"])
def test_an_address_that_is_none_is_refused_without_being_shown(tmp_path: Path, urls: object) -> None:
    ended = command("alerts", "rules", "--config", config(tmp_path, alert_urls=urls))

    assert ended.code == 1
    assert ended.error_line.startswith("perpline: alert_urls (")
    assert "no address'" not in ended.error_line


def test_with_runbook_url_the_page_of_an_alarm_is_an_address(tmp_path: Path) -> None:
    file = config(tmp_path, runbook_url="https://example.com/{name}.html")

    rules = command("alerts", "rules", "--json", "--config", file).json["rules"]

    assert rules[0]["runbook"] == f"https://example.com/{rules[0]['name']}.html"
    assert "What to do: https://example.com/ALARM.html" in command("alerts", "rules", "--config", file).out
    refused = command("alerts", "rules", "--config", config(tmp_path, runbook_url="docs/runbooks"))
    assert refused.error_line.startswith("perpline: runbook_url (")


def test_addresses_come_from_the_environment_with_spaces_between_and_are_masked() -> None:
    env = {"HOME": "/nowhere", "PERPLINE_ALERT_URLS": " discord://1234567/TOKENvalue  mailto://me:pa,ss@example.com "}

    settings = load_settings(None, env, {})

    assert [url.get_secret_value() for url in settings.alert_urls] == [
        "discord://1234567/TOKENvalue",
        "mailto://me:pa,ss@example.com",
    ]
    assert settings.masked()["alert_urls"]["value"] == ["discord://***", "mailto://***"]
    assert "TOKENvalue" not in repr(settings)


async def stored(folder: Path) -> None:
    store = SqliteStore(folder / "perpline.db")
    await store.open()
    rows = [
        ("stream_stale", "BTCUSDT markPrice@1s", "warning", "silent", 1_795_183_200_000, 1_795_183_392_000, None),
        ("disk_low", "/data", "warning", "12 MB left", 1_795_183_300_000, None, 1_795_183_301_000),
    ]
    await store.commit_trading({"alerts": rows})
    await store.close()


def test_list_shows_what_stands_first_and_what_is_over(tmp_path: Path) -> None:
    asyncio.run(stored(tmp_path))
    file = config(tmp_path)

    told = command("alerts", "list", "--json", "--config", file).json
    assert [row["name"] for row in told["standing"]] == ["disk_low"]
    assert [(row["name"], row["notified_at"]) for row in told["recent"]] == [("stream_stale", None)]
    lines = command("alerts", "list", "--config", file).out.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("11-20")] == ["disk_low", "stream_stale"]
    assert any("3 min 12 s" in line for line in lines)


def test_run_without_anybody_to_tell_says_so_and_goes_on(tmp_path: Path) -> None:
    file = config(tmp_path, log_format="json", alert_every_s=0.05)

    ended = command("alerts", "run", "--duration", "0.4", "--config", file)

    events = [json.loads(line)["event"] for line in ended.err.splitlines()]
    assert ended.code == 0
    assert (events[0], events[-1]) == ("alerts_stay_here", "alerts_stopped")
    assert not (tmp_path / "perpline.db").exists()  # who only looks makes none
