"""A private side whose market a test sets by hand, and a client that signs."""

import hashlib
import hmac
import random
from decimal import Decimal

import msgspec
import pytest

from perpline.common.clock import ManualClock
from perpline.simulation.exchange import Book, Exchange
from perpline.simulation.market import HOUR_MS, World
from perpline.simulation.private_rest import Private
from perpline.simulation.signatures import signed_text

NOW = 1_795_400_000_000 // HOUR_MS * HOUR_MS + 600_500
WORLD = World(1, 4)


class Desk:
    """BTCUSDT (contract 0) at 84,000: two levels a side, one unit of 0.1 apart, two coins each."""

    def __init__(self, seed=0):
        self.clock = ManualClock(NOW)
        self.exchange = Exchange(WORLD)
        self.events = []
        self.update_id = 1
        self.bids, self.asks, self.marks, self.lasts = {}, {}, {}, {}
        for index in range(4):
            self.quote(bids=[(84000.0, 2), (83999.9, 2)], asks=[(84000.1, 2), (84000.2, 2)], index=index)
            self.price(84000.0, index=index)
        self.private = Private(
            self.exchange,
            self.clock,
            depth=self._depth,
            mark=lambda index: self.marks[index],
            last=lambda index: self.lasts[index],
            rng=random.Random(seed),
        )
        self.private.emit = lambda key, event: self.events.append((key, event))

    def quote(self, bids=None, asks=None, index=0):
        """The book from now on; prices and quantities in coins, rounded to the contract's units."""
        own = self.exchange.instruments[index]
        for levels, side in ((bids, self.bids), (asks, self.asks)):
            if levels is not None:
                side[index] = [
                    (round(price * 10**own.price_decimals), round(quantity * 10**own.quantity_decimals))
                    for price, quantity in levels
                ]
        self.update_id += 1

    def price(self, mark, last=None, index=0):
        self.marks[index] = mark
        self.lasts[index] = mark if last is None else last

    def around(self, price, quantity=50):
        """Book, mark and last price at this price, with plenty to take."""
        self.quote(bids=[(price, quantity)], asks=[(price + 0.1, quantity)])
        self.price(price)

    def step(self, seconds=1):
        self.clock.advance(seconds)
        self.private.step(self.clock.now_ms())

    def call(self, method, path, key="sim-key", secret="sim-secret", **params):
        """(status, body) of a signed request."""
        answer = self.answer(method, path, key, secret, **params)
        return answer.status, msgspec.json.decode(answer.body)

    def answer(self, method, path, key="sim-key", secret="sim-secret", **params):
        texts = {name: str(value) for name, value in params.items()}
        texts.setdefault("timestamp", str(self.clock.now_ms()))
        query = "&".join(f"{name}={value}" for name, value in texts.items())
        signature = hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
        text = signed_text(f"{query}&signature={signature}")
        path = path if path.startswith("/") else f"/fapi/v1/{path}"
        return self.private.call(method, path, {**texts, "signature": signature}, key=key, signed_text=text)

    def ok(self, method, path, **params):
        status, body = self.call(method, path, **params)
        assert status == 200, body
        return body

    def order(self, side, quantity, price=None, symbol="BTCUSDT", **params):
        """Place, and expect it to be taken: market without a price, limit GTC with one."""
        if price is None:
            params = {"type": "MARKET", **params}
        else:
            params = {"type": "LIMIT", "timeInForce": "GTC", "price": price, **params}
        return self.ok(
            "POST", "order", symbol=symbol, side=side, quantity=quantity, newOrderRespType="RESULT", **params
        )

    def stop(self, side, kind, symbol="BTCUSDT", **params):
        """Place a conditional order and expect it to be taken."""
        return self.ok("POST", "algoOrder", algoType="CONDITIONAL", symbol=symbol, side=side, type=kind, **params)

    def refused(self, method, path, **params):
        """The code of a refusal."""
        status, body = self.call(method, path, **params)
        assert status >= 400, body
        return body["code"]

    def truth(self, key="sim-key"):
        return self.private.truth(key)

    def held(self, symbol="BTCUSDT"):
        """Contracts held, 0 where none."""
        return Decimal(self.truth()["positions"].get(symbol, {"quantity": "0"})["quantity"])

    def told(self, name):
        """The events of this name so far."""
        return [event for _, event in self.events if event["e"] == name]

    def states(self, client_id):
        """(execution, status) of every ORDER_TRADE_UPDATE of this order."""
        return [(e["o"]["x"], e["o"]["X"]) for e in self.told("ORDER_TRADE_UPDATE") if e["o"]["c"] == client_id]

    def algo_states(self, client_id):
        return [e["o"]["X"] for e in self.told("ALGO_UPDATE") if e["o"]["caid"] == client_id]

    def _depth(self, index, levels):
        bids, asks = self.bids[index][:levels], self.asks[index][:levels]
        book = Book(
            bids[0][0] if bids else 1,
            bids[0][1] if bids else 0,
            asks[0][0] if asks else 10**12,
            asks[0][1] if asks else 0,
            self.clock.now_ms(),
            self.update_id,
        )
        return book, bids, asks


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def new_desk():
    """Makes desks, for tests that need many."""
    return Desk
