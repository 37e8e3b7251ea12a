"""The worker's endpoint: for whoever has the token, and for /healthz."""

import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from perpline.common.errors import NeedsPerson
from perpline.endpoint import Endpoint, token_file


@asynccontextmanager
async def opened(folder: Path, *, port: int = 0, trouble: list[str] | None = None) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(
        port=port,
        data_dir=folder,
        status=lambda: {"ready": True},
        trouble=lambda: trouble or [],
        metrics=lambda: b"up 1\n",
        symbol_status=lambda symbol: {"symbols": {symbol: {"bid": 1.0}}},
    )
    try:
        await endpoint.open()
        yield endpoint
    finally:
        await endpoint.close()


async def get(endpoint: Endpoint, path: str, authorization: str | None = None) -> tuple[int, str]:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{endpoint.port}{path}", headers=headers) as answer:
            return answer.status, await answer.text()


def token(folder: Path, endpoint: Endpoint) -> str:
    return str(json.loads(token_file(folder, endpoint.port).read_text())["token"])


async def test_whoever_has_the_token_sees_status_and_metrics(tmp_path: Path) -> None:
    async with opened(tmp_path) as endpoint:
        bearer = f"Bearer {token(tmp_path, endpoint)}"

        status, text = await get(endpoint, "/status", bearer)
        assert (status, json.loads(text)) == (200, {"ready": True})
        assert await get(endpoint, "/metrics", bearer) == (200, "up 1\n")
        status, text = await get(endpoint, "/status?symbol=AUSDT", bearer)
        assert (status, json.loads(text)) == (200, {"symbols": {"AUSDT": {"bid": 1.0}}})


@pytest.mark.parametrize("path", ["/status", "/metrics", "/nowhere", "/healthz/../status"])
@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer wrong", "Bearer äöü", "Basic abc"])
async def test_nobody_else_sees_anything(tmp_path: Path, path: str, sent: str | None) -> None:
    async with opened(tmp_path) as endpoint:
        status, text = await get(endpoint, path, sent)

        assert status == 401
        assert "ready" not in text


async def test_everybody_on_this_machine_may_ask_how_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as well, opened(tmp_path, trouble=["market-0 is not connected"]) as unwell:
        assert await get(well, "/healthz") == (200, '{"ok": true}')
        status, text = await get(unwell, "/healthz")
        assert (status, json.loads(text)) == (503, {"ok": False, "trouble": ["market-0 is not connected"]})


async def test_the_token_is_readable_by_its_user_only_and_gone_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path / "new") as endpoint:
        path = token_file(tmp_path / "new", endpoint.port)
        alone = path.with_suffix(".token")
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(alone.stat().st_mode) == 0o600
        assert alone.read_text() == token(tmp_path / "new", endpoint)

    assert not path.exists()
    assert not alone.exists()


async def test_each_start_has_a_token_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        one = token(tmp_path, first)
    async with opened(tmp_path, port=first.port) as second:
        assert token(tmp_path, second) != one


async def test_a_token_file_that_a_dead_worker_left_is_replaced_whoever_could_read_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as endpoint:
        port = endpoint.port
    token_file(tmp_path, port).write_text("{}")
    token_file(tmp_path, port).chmod(0o644)
    async with opened(tmp_path, port=port) as endpoint:
        path = token_file(tmp_path, port)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await get(endpoint, "/status", f"Bearer {token(tmp_path, endpoint)}"))[0] == 200


async def test_a_port_that_is_taken_is_said_and_the_other_workers_token_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        with pytest.raises(NeedsPerson, match=f"the status port {first.port} is taken"):
            async with opened(tmp_path, port=first.port):
                pass

        assert (await get(first, "/status", f"Bearer {token(tmp_path, first)}"))[0] == 200


async def test_a_folder_that_cannot_hold_the_token_is_said_and_nothing_listens_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    endpoint = Endpoint(port=0, data_dir=tmp_path / "file", status=dict, trouble=list, metrics=bytes)
    with pytest.raises(NeedsPerson, match="cannot write the token file"):
        await endpoint.open()
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(endpoint, "/healthz")
    await endpoint.close()
