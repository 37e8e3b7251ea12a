"""An exchange that takes every order and fills it at once: `python -m bench.venue` prints its port.

WebSockets. Each of `/market/NUMBER` gets its part of what is handed in by `/control`, byte for byte and in one write;
`/orders` answers as the order WebSocket API does; `/user` tells the fills. Whoever sends bytes to `/control` (number
and length of four bytes before each part) is told when the first went out, and a text there is answered with the client
ids of orders that came and when (nanoseconds of the host's monotonic clock, which all its processes share). The
exchange's limit of orders is out of the way: it would end a run after 300.
"""

import asyncio
import json
import struct
import time
from itertools import count
from typing import Any

from aiohttp import WSMsgType, web

LIMITS = [
    {"rateLimitType": "ORDERS", "interval": unit, "intervalNum": number, "limit": 900_000, "count": 0}
    for unit, number in (("SECOND", 10), ("MINUTE", 1))
]


class Venue:
    """What is connected, and when each order came."""

    def __init__(self) -> None:
        self._market: dict[int, web.Request] = {}
        self._users: list[web.WebSocketResponse] = []
        self._came: dict[str, int] = {}
        self._ids = count(1)

    async def market(self, request: web.Request) -> web.WebSocketResponse:
        answers = web.WebSocketResponse()
        await answers.prepare(request)
        self._market[int(request.match_info["number"])] = request
        async for message in answers:
            if message.type is WSMsgType.TEXT:
                await answers.send_json({"result": None, "id": json.loads(message.data)["id"]})
        return answers

    async def user(self, request: web.Request) -> web.WebSocketResponse:
        answers = web.WebSocketResponse()
        await answers.prepare(request)
        self._users.append(answers)
        async for _ in answers:
            pass
        self._users.remove(answers)
        return answers

    async def control(self, request: web.Request) -> web.WebSocketResponse:
        answers = web.WebSocketResponse(max_msg_size=1 << 26)
        await answers.prepare(request)
        async for message in answers:
            if message.type is WSMsgType.BINARY:
                sent_ns = time.monotonic_ns()
                self._forward(message.data)
                await answers.send_json(sent_ns)
            else:
                await answers.send_json(self._came)
                self._came = {}
        return answers

    def _forward(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, length = struct.unpack_from("!II", data, at)
            transport = self._market[number].transport
            assert transport is not None
            transport.write(data[at + 8 : at + 8 + length])
            at += 8 + length

    async def orders(self, request: web.Request) -> web.WebSocketResponse:
        answers = web.WebSocketResponse()
        await answers.prepare(request)
        async for message in answers:
            came_ns = time.monotonic_ns()
            if message.type is not WSMsgType.TEXT:
                continue
            asked = json.loads(message.data)
            params, result, event = asked.get("params", {}), {}, None
            if asked["method"] == "order.place":
                self._came[params["newClientOrderId"]] = came_ns
                result, event = self._filled(params)
            elif asked["method"] == "algoOrder.place":
                self._came[params["clientAlgoId"]] = came_ns
                result = self._rests(params)
            answer = {"id": asked["id"], "status": 200, "result": result, "rateLimits": LIMITS}
            await answers.send_str(json.dumps(answer))
            if event is not None:
                for user in self._users:
                    await user.send_str(json.dumps(event))
        return answers

    def _filled(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer to a market order, and the event that tells of its one fill."""
        number, at = next(self._ids), params["timestamp"]
        result = {
            "orderId": number,
            "symbol": params["symbol"],
            "status": "FILLED",
            "clientOrderId": params["newClientOrderId"],
            "origQty": params["quantity"],
            "executedQty": params["quantity"],
            "reduceOnly": params.get("reduceOnly") == "true",
            "side": params["side"],
            "type": "MARKET",
            "origType": "MARKET",
            "updateTime": at,
        }
        body = {
            "s": params["symbol"],
            "c": params["newClientOrderId"],
            "S": params["side"],
            "o": "MARKET",
            "ot": "MARKET",
            "f": "GTC",
            "q": params["quantity"],
            "p": "0",
            "ap": "100",
            "sp": "0",
            "x": "TRADE",
            "X": "FILLED",
            "i": number,
            "l": params["quantity"],
            "z": params["quantity"],
            "L": "100",
            "n": "0.05",
            "N": "USDT",
            "T": at,
            "t": number,
            "m": False,
            "R": result["reduceOnly"],
            "ps": "BOTH",
            "rp": "0",
            "er": "0",
        }
        return result, {"e": "ORDER_TRADE_UPDATE", "T": at, "E": at, "o": body}

    def _rests(self, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "algoId": next(self._ids),
            "clientAlgoId": params["clientAlgoId"],
            "orderType": "STOP_MARKET",
            "symbol": params["symbol"],
            "side": params["side"],
            "algoStatus": "NEW",
            "quantity": "0",
            "triggerPrice": params["triggerPrice"],
            "closePosition": True,
            "updateTime": params["timestamp"],
        }


async def main() -> None:
    venue = Venue()
    application = web.Application()
    application.router.add_get("/market/{number}", venue.market)
    for name in ("user", "control", "orders"):
        application.router.add_get(f"/{name}", getattr(venue, name))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
