"""The file for a bug report: everything that helps is in it, and nothing that is nobody else's business."""

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from perpline.bootstrap import open_store
from perpline.cli.bundle import Redaction, write_bundle
from perpline.cli.checks import Check
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.endpoint import token_file

NOW = 1_795_410_660_000
LISTEN_KEY = "L" * 30 + "k9" * 17
SECRETS = {
    "api key": "planted-api-key-AAAA",
    "api secret": "planted-api-secret-BBBB",
    "database password": "planted p@ss/CCCC",
    "redis password": "planted-redis-DDDD",
    "environment": "planted-environment-EEEE",
    "token of the worker": "planted-worker-token-FFFF",
    "listen key": LISTEN_KEY,
    "signature": "0123456789abcdef" * 4,
    "bearer": "planted.bearer.GGGG",
    "address in a line": "planted-address-HHHH",
    "query": "planted-query-IIII",
    "private key": "MC4CAQAwBQYDK2VwBCIEIplanted",
    "equity": "98765.4321",
    "alert token": "planted-alert-KKKK",
}


@pytest.fixture
async def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Settings, Path]]:
    """Settings full of secrets, a worker that tells some, and a log that tells the others."""
    home = tmp_path / "home" / "someone"
    data = home / "data"
    data.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GITHUB_TOKEN", SECRETS["environment"])
    monkeypatch.setenv("PGPASSWORD", SECRETS["database password"])
    key = home / "key"
    key.write_text(f"{SECRETS['api key']}\n{SECRETS['api secret']}\n")
    key.chmod(0o600)

    async def status(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {SECRETS['token of the worker']}"
        told = {
            "symbols": {"BTCUSDT": {"price": 1.0, "position": {"entry": SECRETS["equity"]}}},
            "trading": {
                "modes": [{"symbol": "", "mode": "paper", "until": None, "by": "someone@host", "reason": "r"}],
                "accounts": {"paper": {"equity": SECRETS["equity"]}},
            },
            "leadership": {"leads": False, "leader": "planted-host.example, process 7"},
            "trouble": ["live positions without a stop at the exchange: HELDUSDT", "messages wait in the outbox: away"],
            "universe": {"joining": [], "leaving": {"HELDUSDT": "a note"}},
            "last_error": f"wss://host/private/ws?listenKey={LISTEN_KEY}&events=ORDER_TRADE_UPDATE",
        }
        return web.json_response(told)

    app = web.Application()
    app.add_routes([web.get("/status", status)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    access = {"url": f"http://127.0.0.1:{port}", "token": SECRETS["token of the worker"]}
    token_file(data, port).write_text(json.dumps(access))

    log = home / "worker.log"
    log.write_text(
        "".join(
            json.dumps({"event": "line", "reason": reason}, ensure_ascii=False) + "\n"
            for reason in [
                f"key {SECRETS['api key']} and {SECRETS['api secret']}",
                f"password authentication failed for {SECRETS['database password']}",
                f"Redis said {SECRETS['redis password']}",
                f"POST https://discord.com/api/webhooks/123456789/{SECRETS['alert token']}",
                f"GET /fapi/v1/order?symbol=BTCUSDT&signature={SECRETS['signature']}",
                f"Authorization: Bearer {SECRETS['bearer']}",
                f"https://user:{SECRETS['address in a line']}@elsewhere/x",
                f"https://elsewhere/x?token={SECRETS['query']}",
                f"listenKey: {LISTEN_KEY}",
                f"-----BEGIN PRIVATE KEY-----\n{SECRETS['private key']}\n-----END PRIVATE KEY-----",
                f"cannot open {home}/data/perpline.db",
            ]
        )
    )
    settings = load_settings(
        None,
        {"HOME": str(home)},
        {
            "data_dir": data,
            "api_key_file": key,
            "redis_url": f"redis://:{SECRETS['redis password']}@cache:6379/0",
            "status_port": port,
            "alert_urls": [f"discord://123456789/{SECRETS['alert token']}"],
        },
    )
    yield settings, log
    await runner.cleanup()


def opened(file: Path) -> dict[str, str]:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name).decode() for name in archive.namelist()}
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes()), mode="r:gz") as archive_tar:
        return {each.name: archive_tar.extractfile(each).read().decode() for each in archive_tar.getmembers()}


@pytest.mark.parametrize("name", ["report.zip", "report.tar.gz"])
async def test_nothing_secret_is_in_it_and_everything_that_helps_is(
    planted: tuple[Settings, Path], tmp_path: Path, name: str
) -> None:
    settings, log = planted
    store = open_store(settings.database_url.get_secret_value())
    await store.open()
    await store.open_gap("BTCUSDT", "candles_1m", NOW - 60_000, NOW, "a cut", NOW)
    await store.close()
    (settings.data_dir / "spool").mkdir()
    (settings.data_dir / "spool" / "rows-0000000000000001.spool").write_bytes(b"12345")
    checks = [Check("database", "failed", f"redis://:{SECRETS['redis password']}@cache is away")]
    file = tmp_path / name

    names = await write_bundle(file, settings, checks, log, NOW)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    parts = opened(file)
    assert list(parts) == names
    whole = "\n".join(parts.values())
    assert [what for what, secret in SECRETS.items() if secret in whole] == []
    assert str(Path(settings.data_dir).parent) not in whole
    assert json.loads(parts["about.json"])["packages"]["msgspec"]
    assert json.loads(parts["settings.json"])["redis_url"]["value"] == "redis://***@cache:6379/0"
    assert json.loads(parts["settings.json"])["data_dir"]["value"] == "~/data"
    assert json.loads(parts["doctor.json"])[0]["state"] == "failed"
    assert json.loads(parts["worker.json"])["trading"]["modes"] == [{"symbol": "", "mode": "paper", "until": None}]
    told = json.loads(parts["database.json"])
    assert (told["open_gaps"], told["newest_open_gaps"][0]["cause"], told["rows"]["gaps"]) == (1, "a cut", 1)
    assert json.loads(parts["spool.json"]) == [{"folder": "spool", "files": {"rows-0000000000000001.spool": 5}}]
    assert len(parts["log.txt"].splitlines()) == 11
    assert "cannot open ~/data/perpline.db" in parts["log.txt"]


async def test_what_is_held_and_what_it_is_worth_is_not_in_it(planted: tuple[Settings, Path], tmp_path: Path) -> None:
    settings, log = planted
    settings = settings.model_copy(update={"size_usdt": 4711.0, "paper_equity_usdt": 4712.0})
    lines = [
        {"event": "position_opened", "symbol": "HELDUSDT", "detail": "4713 at 4714", "action": "trading"},
        {
            "event": "order_refused",
            "client_id": "HELD-4715",
            "reason": "-2019 Margin is insufficient",
            "action": "orders",
        },
        {
            "event": "difference",
            "kind": "position",
            "ours": "4716",
            "theirs": {"HELDUSDT": 4717},
            "action": "reconcile",
        },
        {"event": "mode_changed", "by": "somebody@planted-host", "reason": "for 4718", "action": "mode"},
        {"event": "gap", "symbol": "BTCUSDT", "action": "gap"},
        {"event": "alarm", "alarm": "position_naked", "subject": "HELDUSDT", "text": "4719", "action": "alert"},
    ]
    log.write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
        + "12:00:00 [info     ] order_not_sent  action=risk detail='has 4720, of 4721' rule=total symbol=HELDUSDT\n"
        + "12:00:00 [error    ] margin_call     account=live action=trading facts={'HELDUSDT': 4722, 'b': 4723}\n"
        + "12:00:00 [info     ] series_taken    action=start rows=17 symbol=BTCUSDT\n"
        + json.dumps({"event": "x", "detail": "y" * 5_000, "symbol": "HELDUSDT", "action": "trading"})
    )
    checks = [
        Check("account", "ok", "4724.10 USDT, 4,725.20 of them free; 2 positions, 3 orders"),
        Check("limits", "warning", "leverage 3, 4726 USDT a symbol, 4727 in all", "4728 is much"),
        Check("symbols", "ok", "2 found: BTCUSDT takes 100 USDT at least, and a position may have 4729"),
    ]
    file = tmp_path / "report.zip"

    await write_bundle(file, settings, checks, log, NOW)

    parts = opened(file)
    whole = "\n".join(parts.values())
    assert [number for number in range(4711, 4730) if str(number) in whole.replace(",", "")] == []
    assert "HELDUSDT" not in whole
    assert "planted-host" not in whole
    assert "somebody" not in whole
    worker = json.loads(parts["worker.json"])
    assert worker["trouble"] == [
        "live positions without a stop at the exchange: ***",
        "messages wait in the outbox: away",
    ]
    assert worker["leadership"]["leader"] == "***, process 7"
    assert (worker["universe"]["leaving"], json.loads(parts["settings.json"])["size_usdt"]["value"]) == (1, "***")
    kept = parts["log.txt"].splitlines()
    assert json.loads(kept[1])["reason"] == "-2019 Margin is insufficient"
    assert json.loads(kept[4]) == lines[4]
    assert json.loads(kept[5])["alarm"] == "position_naked"
    assert kept[6].split("]")[1].split() == ["order_not_sent", "action=risk", "detail=***", "rule=total", "symbol=***"]
    assert kept[8].endswith("series_taken    action=start rows=17 symbol=BTCUSDT")


async def test_a_database_that_cannot_be_reached_is_told_without_its_password(
    planted: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, log = planted
    url = "postgresql://someone:planted%20p%40ss%2FCCCC@127.0.0.1:9/x"
    settings = settings.model_copy(update={"database_url": type(settings.database_url)(url)})
    file = tmp_path / "report.zip"

    await write_bundle(file, settings, [], log, NOW)

    whole = "\n".join(opened(file).values())
    assert [what for what, secret in SECRETS.items() if secret in whole] == []
    assert "planted%20p" not in whole
    assert json.loads(opened(file)["database.json"])["error"]


async def test_a_file_that_is_there_or_of_another_kind_is_left_alone(
    planted: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, _ = planted
    there = tmp_path / "mine.zip"
    there.write_text("mine")

    with pytest.raises(NeedsPerson, match="is there already"):
        await write_bundle(there, settings, [], None, NOW)
    with pytest.raises(NeedsPerson, match=r"ends in \.zip"):
        await write_bundle(tmp_path / "report.rar", settings, [], None, NOW)
    with pytest.raises(NeedsPerson, match="cannot read the log"):
        await write_bundle(tmp_path / "report.zip", settings, [], tmp_path / "nowhere.log", NOW)

    assert there.read_text() == "mine"


async def test_what_is_no_secret_stays_as_it_is(planted: tuple[Settings, Path]) -> None:
    settings, _ = planted
    redact = Redaction(settings, {"HOME": "/home/me"})
    lines = [
        '{"event": "gap", "symbol": "BTCUSDT", "from_time": 1795410660000}',
        "wss://fstream.binance.com/market/ws",
        '{"keys": false, "token": null, "status_port": 9720}',
        "/home/meadow/file",
        "mail someone@example.org",
    ]
    assert [redact(line) for line in lines] == lines
    assert redact("/home/me/file /home/me") == "~/file ~"
