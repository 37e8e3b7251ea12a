"""Who comes in: only a browser that brought the token, under our name, from our page; and what it may send."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dashing import Served, served, settings_in
from perpline.common.clock import SystemClock
from perpline.common.errors import NeedsPerson
from perpline.dashboard.app import MAX_BODY, MOST_SOCKETS, Dashboard, is_loopback, serve
from perpline.dashboard.reading import Reading
from perpline.dashboard.snapshot import Picture

GETS = (
    *("/", "/index.html", "/style.css", "/app/main.js", "/vendor/MANIFEST.json", "/nothing"),
    *("/api/session", "/api/symbol?symbol=AUSDT", "/api/slippage", "/api/minutes", "/api/health", "/api/latency"),
    *("/api/models", "/api/models/report?model_id=m1", "/api/trading", "/api/log", "/api/explain", "/ws"),
)
POSTS = ("/api/mode", "/api/flatten", "/api/nothing")
EVERY = [("GET", path) for path in GETS] + [("POST", path) for path in POSTS]
ODD_HOSTS = (
    "evil.example",
    "evil.example:9721",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "",
    "a@127.0.0.1",
    "[::1",
)


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_nothing_is_told_without_the_cookie(page: Served, method: str, path: str) -> None:
    name = page.cookie.partition("=")[0]
    for cookie in ("", f"{name}=guess", f"{name}={page.token}", f"{name}=\xff"):
        answer = page.ask(method, path, b"{}" if method == "POST" else None, cookie=cookie)
        assert answer.status == 401
        assert b"open the address that perpline dashboard printed" in answer.body


@pytest.mark.parametrize("path", GETS)
def test_a_page_of_others_reaches_nothing_under_a_name_of_its_own(page: Served, path: str) -> None:
    assert {page.ask("GET", path, host=host).status for host in ODD_HOSTS} == {403}
    assert page.ask("GET", f"/?token={page.token}", host="evil.example", cookie="").status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:9721", "127.0.0.2:80"])
def test_every_name_of_this_machine_will_do_for_a_tunnel_may_have_another_port(page: Served, host: str) -> None:
    assert page.ask("GET", "/api/session", host=host).status == 200


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_a_foreign_origin_is_refused(page: Served, method: str, path: str) -> None:
    foreign = (
        "https://evil.example",
        "null",
        f"https://127.0.0.1:{page.port}",
        "http://127.0.0.1:1",
        "http://localhost",
    )
    body = b"{}" if method == "POST" else None
    assert {page.ask(method, path, body, Origin=origin).status for origin in foreign} == {403}


def test_another_site_on_this_machine_is_refused_though_the_browser_sends_the_cookie(page: Served) -> None:
    for site in ("cross-site", "same-site"):
        assert page.ask("GET", "/api/trading", Sec_Fetch_Site=site).status == 403
    for site in ("same-origin", "none"):
        assert page.ask("GET", "/api/trading", Sec_Fetch_Site=site).status == 200


def test_the_token_is_exchanged_for_a_cookie_that_no_script_reads(page: Served) -> None:
    entered = page.ask("GET", f"/?token={page.token}", cookie="")

    assert (entered.status, entered.headers["Location"]) == (303, "/")
    assert page.token not in entered.headers["Set-Cookie"]
    flags = {part.strip() for part in entered.headers["Set-Cookie"].split(";")[1:]}
    assert flags == {"HttpOnly", "Path=/", "SameSite=Strict"}
    assert page.ask("GET", "/?token=guess", cookie="").status == 401
    assert page.ask("GET", f"/api/session?token={page.token}", cookie="").status == 401


def test_two_dashboards_on_one_machine_do_not_log_each_other_out(page: Served, tmp_path: Path) -> None:
    with served(settings_in(tmp_path)) as other:
        cookies = f"{page.cookie}; {other.cookie}"
        assert page.cookie.startswith(f"perpline_session_{page.port}=")
        assert [each.ask("GET", "/api/session", cookie=cookies).status for each in (page, other)] == [200, 200]


@pytest.mark.parametrize("path", POSTS)
def test_what_changes_something_wants_what_only_our_page_can_read(page: Served, path: str) -> None:
    for header in ({}, {"X_Perpline_CSRF": "guess"}, {"X_Perpline_CSRF": ""}):
        assert page.ask("POST", path, b"{}", **header).status == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/../app.py", "/app/../../app.py", "/%2e%2e/app.py", "/app/..%2f..%2fapp.py", "/..%5capp.py", "//etc/passwd"),
        *("/etc/passwd", "/%00", "/app/main.js/", "/app", "/vendor/README.md%00.js", "/" + "a" * 4000),
    ],
)
def test_nothing_but_the_pages_files_is_served(page: Served, path: str) -> None:
    assert page.ask("GET", path).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_other_methods_do_nothing(page: Served, method: str) -> None:
    assert page.ask(method, "/api/session").status == 403
    allowed = page.ask(method, "/api/mode", X_Perpline_CSRF=page.csrf)
    assert (allowed.status, "POST" in allowed.headers["Allow"]) == (405, True)
    assert page.ask("GET", "/api/mode").status == 404


def test_head_is_answered_without_a_body(page: Served) -> None:
    for path in ("/", "/style.css", "/api/session"):
        answer = page.ask("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


def test_a_file_that_the_browser_has_is_not_sent_again(page: Served) -> None:
    first = page.ask("GET", "/style.css")
    again = page.ask("GET", "/style.css", If_None_Match=first.headers["ETag"])

    assert (first.status, first.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["/api/mode", "/api/flatten"])
@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"null",
            b"NaN",
            b'{"mode": NaN}',
            b'{"mode":"off","reason":"x","for":Infinity}',
            b"\xff\xfe",
        ),
        *(
            b'{"mode":"off"}',
            b'{"mode":"loud","reason":"x"}',
            b'{"mode":"off","reason":"x","sudo":true}',
            b"[" * 60_000,
        ),
        *(b'{"mode":"off","reason":7}', b'{"mode":"off","reason":"  "}', b'{"mode":"off","reason":"a\\u0000b"}'),
        *(b'{"mode":"off","reason":"a\\ud800"}', b'{"mode":"off","reason":"a\\nb"}', b'{"mode":"live","reason":"x"}'),
        *(
            b'{"mode":"off","reason":"x","symbols":["A\'; DROP TABLE modes"]}',
            b'{"mode":"off","reason":"x","symbols":"A"}',
        ),
        *(b'{"mode":"off","reason":"x","symbols":["NOSUCH"]}', b'{"mode":"paper","reason":"x","for":"8 hours"}'),
        *(b'{"mode":"paper","reason":"x","for":"0h"}', b'{"mode":"off","reason":"x","positions":"double"}'),
        *(b'{"account":"paper","confirm":"flatten"}', b'{"account":"all","confirm":"FLATTEN"}'),
        *(b'{"account":"paper","confirm":"FLATTEN","now":1}', b'{"account":"paper","confirm":"FLATTEN","symbols":[7]}'),
    ],
)
def test_a_body_that_cannot_be_meant_is_refused_and_changes_nothing(page: Served, path: str, body: bytes) -> None:
    answer = page.post(path, body)

    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert len(page.ask("GET", "/api/log").json["modes"]) == 1


def test_a_body_is_json_by_its_type_and_not_larger_than_it_need_be(page: Served) -> None:
    off = {"mode": "off", "reason": "x"}
    assert page.post("/api/mode", off, Content_Type="text/plain").status == 400
    assert page.post("/api/mode", json.dumps({**off, "reason": "x" * MAX_BODY}).encode()).status == 413


ASKED = [
    ("/api/symbol", ("symbol", "interval", "limit", "end")),
    ("/api/slippage", ("symbol", "side", "quote_usdt")),
    ("/api/minutes", ("minutes", "end")),
    ("/api/latency", ("minutes",)),
    ("/api/models/report", ("model_id",)),
    ("/api/explain", ("symbol", "close_time", "slot")),
    ("/api/health", ()),
]
VALUES = st.one_of(
    st.sampled_from(
        ["AUSDT", "ausdt", "1m", "1h", "buy", "1", "0", "-1", "1e9", "nan", "1795410660000", "champion", "m1"]
    ),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.text(max_size=30),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ASKED), st.lists(VALUES, max_size=4), st.lists(st.text(max_size=10), max_size=1))
@example(ASKED[0], ["AUSDT", "1m", "1500", "0"], [])
@example(ASKED[1], ["AUSDT", "buy", "1000"], [])
@example(ASKED[2], ["1440", "86400000"], [])
@example(ASKED[5], ["AUSDT", "1795410660000", "champion"], [])
def test_whatever_is_asked_is_answered_or_refused_in_a_sentence(
    page: Served, asked: tuple[str, tuple[str, ...]], values: list[str], more: list[str]
) -> None:
    path, names = asked
    query = [f"{_quoted(name)}={_quoted(value)}" for name, value in zip([*names, *more], values, strict=False)]

    answer = page.ask("GET", f"{path}?{'&'.join(query)}")

    assert answer.status in (200, 400, 404, 503), answer
    if answer.status != 200:
        assert answer.json["error"]
    elif path != "/api/models/report":
        assert answer.json


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode(errors="replace"))


def test_a_parameter_that_is_unknown_or_given_twice_is_said(page: Served) -> None:
    assert page.ask("GET", "/api/health?x=1").json == {"error": "there is no parameter 'x'"}
    assert page.ask("GET", "/api/minutes?minutes=1&minutes=2").json == {"error": "a parameter is given twice"}


async def test_a_socket_is_for_who_came_in_and_understands_one_word_only(page: Served) -> None:
    url, cookie = f"http://127.0.0.1:{page.port}/ws", {"Cookie": page.cookie}
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {**cookie, "Origin": "https://evil.example"}, {**cookie, "Host": "evil.example"}):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(url, headers=headers)
        for said in (
            "hello",
            "[]",
            '{"type":"ack"}',
            '{"type":"ack","n":true}',
            '{"type":"ack","n":1,"x":1}',
            "x" * 9999,
        ):
            async with session.ws_connect(url, headers=cookie) as socket:
                assert (await socket.receive_json())["type"] == "overview"
                await socket.send_str(said)
                ended = await socket.receive()
                assert (ended.type, ended.data) in [(aiohttp.WSMsgType.CLOSE, code) for code in (1008, 1009)]


async def test_so_many_pages_may_be_open_and_no_more(page: Served) -> None:
    async with aiohttp.ClientSession(headers={"Cookie": page.cookie}) as session:
        url = f"http://127.0.0.1:{page.port}/ws"
        sockets = [await session.ws_connect(url) for _ in range(MOST_SOCKETS)]
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await session.ws_connect(url)
        for socket in sockets:
            await socket.close()


@pytest.mark.parametrize("how", [{}, {"allow_remote": True}, {"without_tls": True}])
async def test_others_reach_it_only_encrypted_or_by_an_own_word(tmp_path: Path, how: dict[str, bool]) -> None:
    asked = {"allow_remote": False, "without_tls": False, "tls": None, **how}
    with pytest.raises(NeedsPerson, match="--allow-remote with --tls-cert"):
        await serve(
            settings_in(tmp_path, dashboard_host="0.0.0.0"),
            *(SystemClock(), asyncio.Event()),
            by="x",
            on_ready=lambda listening: None,
            **asked,
        )


async def test_under_tls_the_cookie_goes_nowhere_else_and_origins_are_https(tmp_path: Path) -> None:
    settings, clock = settings_in(tmp_path), SystemClock()
    reading = Reading(settings, clock)
    dashboard = Dashboard(settings, clock, reading, Picture(settings, reading, clock), by="x", is_secure=True)
    async with TestServer(dashboard.app()) as server, aiohttp.ClientSession() as session:
        url = server.make_url("/")
        async with session.get(url.with_query(token=dashboard.token), allow_redirects=False) as entered:
            assert "; Secure" in entered.headers["Set-Cookie"]
            cookie = entered.headers["Set-Cookie"].split(";")[0]
        answers = []
        for scheme in ("https", "http"):
            headers = {"Cookie": cookie, "Origin": f"{scheme}://127.0.0.1:{server.port}"}
            async with session.get(url, headers=headers) as answer:
                answers.append(answer.status)
        assert answers == [200, 403]


def test_behind_a_proxy_that_ends_tls_the_origin_that_is_set_is_ours_and_no_other(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, dashboard_origin="https://Trader.example.com/")
    assert settings.dashboard_origin == "https://trader.example.com"
    with served(settings) as page:
        assert page.url.startswith("https://trader.example.com/?token=")
        entered = page.ask("GET", f"/?token={page.token}", cookie="", host="trader.example.com")
        assert (entered.status, "; Secure" in entered.headers["Set-Cookie"]) == (303, True)
        off = {"mode": "off", "reason": "x", "symbols": ["NOSUCH"]}
        for host in ("trader.example.com", f"127.0.0.1:{page.port}"):  # some proxies pass the name on, some do not
            answer = page.post("/api/mode", off, Origin="https://trader.example.com", host=host)
            assert (answer.status, "no database yet" in answer.json["error"]) == (503, True)  # it was let in
        for origin in ("http://trader.example.com", "https://evil.example", "https://trader.example.com.evil.example"):
            assert page.post("/api/mode", off, Origin=origin, host="trader.example.com").status == 403
        assert page.ask("GET", "/api/session", host="evil.example").status == 403


def test_listening_for_others_an_address_is_ours_and_a_name_is_not(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, dashboard_host="0.0.0.0")
    with served(settings, allow_remote=True, without_tls=True) as page:
        asked = ("192.168.1.7:9721", "[2001:db8::1]:9721", "127.0.0.1", "evil.example", "192.168.1.7.evil.example")
        assert [page.ask("GET", "/api/session", host=host).status for host in asked] == [200, 200, 200, 403, 403]


@pytest.mark.parametrize(
    ("host", "ours"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("box.lan", False)],
)
def test_what_counts_as_this_machine(host: str, ours: bool) -> None:
    assert is_loopback(host) is ours
