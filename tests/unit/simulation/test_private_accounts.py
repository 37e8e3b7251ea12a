"""Accounts of the simulated exchange: margin, funding, liquidation, settings, keys, and what may be asked."""

from decimal import Decimal
from itertools import pairwise

import pytest

from perpline.simulation.accounts import BRACKETS, ONE, maintenance, most_notional
from perpline.simulation.market import HOUR_MS


def _money(desk, name):
    return Decimal(desk.ok("GET", "/fapi/v3/account")[name])


def test_the_account_starts_with_a_hundred_thousand(desk):
    (balance,) = desk.ok("GET", "/fapi/v3/balance")

    assert (balance["asset"], balance["balance"], balance["availableBalance"]) == (
        "USDT",
        "100000.00000000",
        "100000.00000000",
    )


def test_profit_and_fees_go_to_the_wallet(desk):
    desk.order("BUY", "1")
    desk.around(85_000.0)
    assert _money(desk, "totalUnrealizedProfit") == Decimal("999.9")
    desk.order("SELL", "1")

    fees = Decimal("84000.1") * Decimal("0.0005") + Decimal("85000") * Decimal("0.0005")
    assert _money(desk, "totalWalletBalance") == Decimal("100999.9") - fees


def test_margin_of_a_position_follows_the_mark_and_the_leverage(desk):
    desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=10)
    desk.order("BUY", "1")
    (position,) = desk.ok("GET", "/fapi/v3/positionRisk")

    assert position["positionInitialMargin"] == "8400.00000000"
    # 84,000 lies in the second bracket: 0.5 per cent less 50.
    assert position["maintMargin"] == "370.00000000"


def test_brackets_join_without_a_step():
    for lower, upper in pairwise(BRACKETS):
        assert lower.cap == upper.floor
        assert maintenance(lower.cap) == lower.cap * upper.rate // ONE - upper.cum
    assert [most_notional(leverage) // ONE for leverage in (125, 100, 21, 20, 1)] == [
        50_000,
        600_000,
        70_000_000,
        100_000_000,
        1_200_000_000,
    ]


def test_positions_are_asked_for_in_both_versions(desk):
    assert desk.ok("GET", "/fapi/v3/positionRisk") == []
    rows = desk.ok("GET", "/fapi/v2/positionRisk")
    assert [(row["symbol"], row["leverage"], row["marginType"]) for row in rows[:1]] == [("BTCUSDT", "20", "cross")]
    assert len(rows) == 4

    desk.order("BUY", "1", "83000.00", symbol="ETHUSDT")
    assert [row["symbol"] for row in desk.ok("GET", "/fapi/v3/positionRisk")] == ["ETHUSDT"]
    assert desk.ok("GET", "/fapi/v3/positionRisk", symbol="BTCUSDT") == []


def test_isolated_margin_is_set_aside_and_returned(desk):
    desk.ok("POST", "marginType", symbol="BTCUSDT", marginType="ISOLATED")
    desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=3)
    desk.order("BUY", "1")
    (position,) = desk.ok("GET", "/fapi/v3/positionRisk")
    assert position["isolatedWallet"] == "28000.03333333"
    assert _money(desk, "totalCrossWalletBalance") == _money(desk, "totalWalletBalance") - Decimal("28000.03333333")

    desk.order("SELL", "1")
    assert _money(desk, "totalCrossWalletBalance") == _money(desk, "totalWalletBalance")


@pytest.mark.parametrize("side", ["BUY", "SELL"])
def test_an_isolated_position_is_liquidated_at_the_price_that_was_told_and_not_a_tick_before(desk, side):
    sign = 1 if side == "BUY" else -1
    desk.ok("POST", "marginType", symbol="BTCUSDT", marginType="ISOLATED")
    desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=10)
    desk.order(side, "1")
    desk.order(side, "0.1", "80000.00" if side == "BUY" else "88000.00", newClientOrderId="rests")
    (position,) = desk.ok("GET", "/fapi/v3/positionRisk")
    told = float(position["liquidationPrice"])
    assert 0.08 < sign * (84_000 - told) / 84_000 < 0.1

    desk.price(told + sign * 0.1)
    desk.step()
    assert abs(desk.held()) == 1
    assert [call["p"][0]["mt"] for call in desk.told("MARGIN_CALL")] == ["ISOLATED"]
    desk.price(told - sign * 0.1)
    desk.step()

    assert desk.held() == 0
    assert desk.states("rests")[-1] == ("EXPIRED", "EXPIRED")
    forced = desk.ok("GET", "forceOrders")
    assert [order["clientOrderId"].partition("-")[0] for order in forced] == ["autoclose"]
    events = [e["o"] for e in desk.told("ORDER_TRADE_UPDATE") if e["o"]["c"].startswith("autoclose-")]
    assert [(event["x"], event["X"], event["o"]) for event in events] == [
        ("NEW", "NEW", "LIQUIDATION"),
        ("CALCULATED", "FILLED", "LIQUIDATION"),
    ]
    # What was set aside is lost, and nothing beyond it.
    lost = Decimal(100_000) - _money(desk, "totalWalletBalance")
    assert Decimal("7900") < lost <= Decimal(position["isolatedWallet"]) + Decimal("42.1")


def test_a_loss_beyond_the_isolated_margin_is_borne_by_the_insurance_fund(desk):
    desk.ok("POST", "marginType", symbol="BTCUSDT", marginType="ISOLATED")
    desk.order("BUY", "1")
    margin = Decimal(desk.ok("GET", "/fapi/v3/positionRisk")[0]["isolatedWallet"])
    before = _money(desk, "totalWalletBalance")
    desk.price(60_000.0)
    desk.step()

    assert _money(desk, "totalWalletBalance") == before - margin
    assert [row["incomeType"] for row in desk.truth()["income"]][-1] == "INSURANCE_CLEAR"


def test_cross_positions_are_liquidated_when_the_whole_account_no_longer_covers_them(desk):
    desk.around(84_000.0)
    desk.order("BUY", "20")
    told = float(desk.ok("GET", "/fapi/v3/positionRisk")[0]["liquidationPrice"])
    desk.price(told + 0.1)
    desk.step()
    assert desk.held() == 20

    desk.price(told - 0.1)
    desk.step()
    assert desk.held() == 0
    assert 0 <= _money(desk, "totalWalletBalance") < 10_000


def test_funding_is_paid_at_the_hour_and_told_with_its_symbol(desk):
    eight = 8 * HOUR_MS
    desk.order("BUY", "1")
    settles_ms = (desk.clock.now_ms() // eight + 1) * eight
    desk.step((settles_ms - desk.clock.now_ms()) / 1000 - 1)
    assert [row for row in desk.truth()["income"] if row["incomeType"] == "FUNDING_FEE"] == []
    desk.step(1)
    desk.step(1)

    (row,) = [row for row in desk.truth()["income"] if row["incomeType"] == "FUNDING_FEE"]
    (settled,) = desk.exchange.funding(0, settles_ms, settles_ms + 1000, 1, latest=True)
    assert Decimal(row["income"]) == -Decimal(84_000) * Decimal(settled["fundingRate"])
    (told,) = [event for event in desk.told("ACCOUNT_UPDATE") if event["a"]["m"] == "FUNDING_FEE"]
    assert (told["a"]["S"], told["a"]["P"]) == ("BTCUSDT", [])


def test_isolated_funding_is_told_with_the_position(desk):
    desk.ok("POST", "marginType", symbol="BTCUSDT", marginType="ISOLATED")
    desk.order("SELL", "1")
    desk.step()
    desk.step(8 * 3600)

    (told, *_) = [event for event in desk.told("ACCOUNT_UPDATE") if event["a"]["m"] == "FUNDING_FEE"]
    assert [row["s"] for row in told["a"]["P"]] == ["BTCUSDT"]


def test_deleveraging_closes_a_part_at_the_mark_in_the_exchange_s_name(desk):
    desk.order("BUY", "1")
    desk.private.deleverage("sim-key", "BTCUSDT", "0.4")

    assert desk.held() == Decimal("0.6")
    assert desk.states("adl_autoclose") == [("NEW", "NEW"), ("TRADE", "FILLED")]


def test_a_delisted_contract_is_settled(desk):
    desk.order("BUY", "1", symbol="ETHUSDT")
    desk.exchange.delist(1, desk.clock.now_ms() // 60_000 * 60_000)
    desk.step()

    assert desk.held("ETHUSDT") == 0
    assert desk.told("ORDER_TRADE_UPDATE")[-1]["o"]["c"].startswith("settlement_autoclose-")


def test_money_from_outside_is_told_as_a_change_of_the_balance(desk):
    desk.private.deposit("sim-key", "250.5")

    (event,) = desk.told("ACCOUNT_UPDATE")
    assert (event["a"]["m"], event["a"]["B"][0]["bc"], event["a"]["B"][0]["wb"]) == (
        "DEPOSIT",
        "250.50000000",
        "100250.50000000",
    )


# ---- settings


def test_leverage_is_told_when_it_changes_and_only_then(desk):
    for leverage in (10, 10):
        desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=leverage)

    assert [event["ac"] for event in desk.told("ACCOUNT_CONFIG_UPDATE")] == [{"s": "BTCUSDT", "l": 10}]
    assert desk.refused("POST", "leverage", symbol="BTCUSDT", leverage=126) == -4028
    assert desk.refused("POST", "leverage", symbol="BTCUSDT", leverage="x") == -1100
    (config,) = desk.ok("GET", "symbolConfig", symbol="BTCUSDT")
    assert (config["leverage"], config["marginType"]) == (10, "CROSSED")


def test_margin_type_changes_only_while_nothing_is_open(desk):
    set_isolated = ("POST", "marginType")
    assert desk.refused(*set_isolated, symbol="BTCUSDT", marginType="CROSSED") == -4046
    desk.order("BUY", "1", "83000.00")
    assert desk.refused(*set_isolated, symbol="BTCUSDT", marginType="ISOLATED") == -4047
    desk.ok("DELETE", "allOpenOrders", symbol="BTCUSDT")
    desk.order("BUY", "1")
    assert desk.refused(*set_isolated, symbol="BTCUSDT", marginType="ISOLATED") == -4048
    desk.order("SELL", "1")
    assert desk.ok(*set_isolated, symbol="BTCUSDT", marginType="ISOLATED") == {"code": 200, "msg": "success"}
    desk.order("BUY", "1")
    assert desk.refused("POST", "leverage", symbol="BTCUSDT", leverage=5) == -4161


def test_margin_can_be_moved_into_and_out_of_an_isolated_position(desk):
    desk.ok("POST", "marginType", symbol="BTCUSDT", marginType="ISOLATED")
    assert desk.refused("POST", "positionMargin", symbol="BTCUSDT", amount="100", type="1") == -4054
    desk.order("BUY", "1")
    before = Decimal(desk.truth()["positions"]["BTCUSDT"]["isolated_wallet"])

    desk.ok("POST", "positionMargin", symbol="BTCUSDT", amount="100", type="1")
    assert Decimal(desk.truth()["positions"]["BTCUSDT"]["isolated_wallet"]) == before + 100
    desk.ok("POST", "positionMargin", symbol="BTCUSDT", amount="50", type="2")
    assert desk.refused("POST", "positionMargin", symbol="BTCUSDT", amount="500", type="2") == -4051


def test_hedge_mode_holds_both_sides_and_knows_no_reduce_only(desk):
    assert desk.refused("POST", "positionSide/dual", dualSidePosition="false") == -4059
    desk.ok("POST", "positionSide/dual", dualSidePosition="true")
    assert desk.ok("GET", "positionSide/dual") == {"dualSidePosition": True}

    params = {"symbol": "BTCUSDT", "type": "MARKET", "quantity": "1"}
    assert desk.refused("POST", "order", side="BUY", **params) == -4061
    assert desk.refused("POST", "order", side="SELL", positionSide="LONG", **params) == -2022
    desk.order("BUY", "1", positionSide="LONG")
    desk.order("SELL", "1", positionSide="SHORT")
    assert desk.refused("POST", "order", side="SELL", positionSide="LONG", reduceOnly="true", **params) == -1106
    assert {row["positionSide"] for row in desk.ok("GET", "/fapi/v3/positionRisk")} == {"LONG", "SHORT"}
    assert desk.refused("POST", "positionSide/dual", dualSidePosition="false") == -4068
    desk.stop("SELL", "STOP_MARKET", positionSide="LONG", closePosition="true", triggerPrice="83900.00")
    desk.price(83900.0)
    desk.step()
    assert list(desk.truth()["positions"]) == ["BTCUSDT SHORT"]


def test_multi_assets_mode_is_told_and_forbids_isolated_margin(desk):
    desk.ok("POST", "multiAssetsMargin", multiAssetsMargin="true")
    assert desk.refused("POST", "multiAssetsMargin", multiAssetsMargin="true") == -4171
    assert desk.refused("POST", "marginType", symbol="BTCUSDT", marginType="ISOLATED") == -4168
    assert [event["ai"] for event in desk.told("ACCOUNT_CONFIG_UPDATE")] == [{"j": True}]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/fapi/v2/account", {}),
        ("/fapi/v3/account", {}),
        ("/fapi/v2/balance", {}),
        ("accountConfig", {}),
        ("symbolConfig", {}),
        ("leverageBracket", {"symbol": "BTCUSDT"}),
        ("commissionRate", {"symbol": "BTCUSDT"}),
        ("rateLimit/order", {}),
        ("apiTradingStatus", {}),
        ("feeBurn", {}),
        ("adlQuantile", {}),
        ("allOrders", {}),
        ("forceOrders", {}),
    ],
)
def test_what_else_an_account_may_ask_is_answered(desk, path, params):
    desk.order("BUY", "1")

    assert desk.call("GET", path, **params)[0] == 200


def test_the_key_s_permissions_are_told(desk):
    desk.private.add_account("other", secret="s", can_withdraw=True, bound_to_address=False)

    mine = desk.ok("GET", "/sapi/v1/account/apiRestrictions")
    _, other = desk.call("GET", "/sapi/v1/account/apiRestrictions", key="other", secret="s")
    names = ("enableFutures", "enableWithdrawals", "ipRestrict")
    assert [mine[name] for name in names] == [True, False, True]
    assert [other[name] for name in names] == [True, True, False]


def test_accounts_do_not_see_each_other(desk):
    desk.private.add_account("other", secret="s", balance="500")
    desk.order("BUY", "1", "83000.00")

    assert desk.call("GET", "openOrders", key="other", secret="s") == (200, [])
    assert desk.truth("other")["wallet"] == "500.00000000"
    with pytest.raises(ValueError, match="there is an account"):
        desk.private.add_account("other", secret="s")


# ---- the user data stream's key


def test_a_listen_key_lives_an_hour_from_when_it_was_made_or_kept(desk):
    made = desk.ok("POST", "listenKey")["listenKey"]
    assert len(made) == 64
    desk.step(59 * 60)
    assert desk.ok("PUT", "listenKey") == {"listenKey": made}
    desk.step(59 * 60)
    assert desk.ok("POST", "listenKey")["listenKey"] == made
    assert desk.private.key_of(made) == "sim-key"
    desk.step(60 * 60)

    (event,) = desk.told("listenKeyExpired")
    assert event["listenKey"] == made
    assert desk.private.key_of(made) is None
    assert desk.refused("PUT", "listenKey") == -1125
    assert desk.ok("POST", "listenKey")["listenKey"] != made


def test_a_listen_key_that_is_given_up_is_told_as_expired(desk):
    desk.ok("POST", "listenKey")

    assert desk.ok("DELETE", "listenKey") == {}
    assert len(desk.told("listenKeyExpired")) == 1
    assert desk.private.key_of("") is None
