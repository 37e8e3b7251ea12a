"""`perpline explain`: one decision, and everything it was made of."""

import asyncio
import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from perpline.bootstrap import utc_text
from perpline.cli.books import LEGS, account_text, money, price, side_text
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.common.config import load_settings
from perpline.domain.candle import MINUTE_MS
from perpline.domain.signal import Status
from perpline.explanation import explain_stored


def explain(
    symbol: Annotated[str, typer.Argument(help="The symbol.")],
    close_time: Annotated[str, typer.Argument(help='T: milliseconds, ISO 8601, or "2026-11-23 05:11" (UTC).')],
    slot: Annotated[
        str | None, typer.Option(help="The slot; default: the setting slot, champion.", show_default=False)
    ] = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show on one page why a minute was decided as it was: candles, vector, model, thresholds, latency, publication.

    And what became of a signal: refused, or order, fills, stop and exit; and what would have by its own rule.

    Example: perpline explain BTCUSDT "2026-11-23 05:11"
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    t = time_ms(close_time, "CLOSE_TIME")
    if t % MINUTE_MS:
        raise typer.BadParameter(f"{utc_text(t)} and some seconds: minutes close at :00", param_hint="CLOSE_TIME")
    try:
        facts = asyncio.run(explain_stored(settings, symbol.upper(), t, slot or settings.slot))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="SYMBOL, --slot") from None
    if as_json:
        print_json(facts)
    else:
        explain_page(facts, Console(highlight=False, markup=False))


def explain_page(facts: dict[str, Any], console: Console) -> None:
    """Print what `explain_facts` gathered; the console reads no markup."""
    decision, prediction, model = facts["decision"], facts["prediction"], facts["model"]
    console.print(f"{facts['symbol']} at {utc_text(facts['close_time'])}, slot {facts['slot']}", style="bold")
    if decision is None:
        console.print("scored beside the champion, not decided on")
    else:
        side = {1: "▲ long", -1: "▼ short"}.get(decision["side"], decision["status"])
        console.print(f"{side}{': ' + decision['detail'] if decision['detail'] else ''}")
        console.print(f"signal {decision['signal_id']}, seq {decision['seq']}, {decision['xs_n']} decided together")
        if decision["status"] == Status.OK:
            console.print(f"target {decision['tp_price']}, stop {decision['sl_price']}, mark {decision['ref_mark']}")
        console.print(
            f"mark {decision['ref_mark']}, last {decision['ref_last']}, bid {decision['bid']}, ask {decision['ask']}"
        )
    console.print("\nmodel", style="bold")
    console.print(f"{model['model_id']}{': ' + model['note'] if model['note'] else ''}")
    if model["problem"]:
        console.print(f"its manifest cannot be read: {model['problem']}", style="red")
    if decision is not None:
        console.print(f"schema {decision['schema_hash']}, label {decision['label_hash']}")
        console.print(
            f"better side: p raw {_shown(decision['p_raw'])}, calibrated {_shown(decision['p_cal'])} "
            f"(from {_shown(decision['threshold'])} on), EV {_shown(decision['ev_bp'])} bp "
            f"(from {_shown(model['ev_min_bp'])} on)"
        )
        console.print(
            f"{decision['nan_count']} features without a value, {decision['ood_share']:.1%} outside what training had "
            f"(up to {_shown(model['max_ood_share'])}), late inputs {decision['late_mask']:#b}"
        )
    if prediction is not None:
        console.print(
            f"long {_shown(prediction['p_long_raw'])} → {_shown(prediction['p_long'])}, "
            f"short {_shown(prediction['p_short_raw'])} → {_shown(prediction['p_short'])}, "
            f"vector {prediction['feat_ref']}"
        )
    _print_candles(console, facts["candles"])
    _print_vector(console, facts["vector"])
    if facts["latency_ms"] is not None:
        console.print("\nlatency", style="bold")
        steps = facts["latency_ms"].items()
        console.print(", ".join(f"{name.replace('_', ' ')} {_shown(took)} ms" for name, took in steps))
    outbox = facts["outbox"]
    if outbox is None:
        console.print("no message: it was never meant to be published")
    else:
        at = outbox["published_at"]
        console.print(f"message {outbox['id']}: " + (f"published {utc_text(at)}" if at else "waits in the outbox"))
        console.print(outbox["payload"], style="dim")
    _print_traded(console, facts["trading"])
    if facts["outcome"] is not None:
        _print_outcome(console, facts["outcome"])


def _print_outcome(console: Console, outcome: dict[str, Any]) -> None:
    console.print("\noutcome by its own rule", style="bold")
    console.print(
        f"{outcome['reason'].replace('_', ' ')} until {utc_text(outcome['t_exit'])}, {outcome['ret_net']:+.3%} after "
        f"costs; furthest for it {outcome['mfe']:+.3%}, against it {outcome['mae']:+.3%}"
    )


def _print_traded(console: Console, traded: dict[str, Any] | None) -> None:
    """The signal's way on: refused, or order, fills, stop and exit, account by account."""
    if traded is None or not (traded["refusals"] or traded["positions"]):
        return
    console.print("\ntrading", style="bold")
    for refusal in traded["refusals"]:
        console.print(f"{refusal['account']}: refused by {refusal['rule']}: {refusal['detail']}", style="yellow")
    for position in traded["positions"]:
        account = position["account"]
        console.print(
            account_text(account),
            side_text(position["side"]),
            f"{price(position['opened_quantity'])} at {price(position['entry_price'])}, target "
            f"{price(position['target'])}, stop {price(position['stop'])}, at the exchange "
            f"{price(position['protective_stop'])}; {position['naked_ms'] / 1000:.1f} s without one",
        )
        mine = [order for order in traded["orders"] if order["account"] == account]
        for order in mine:
            console.print(_order_line(order))
        for fill in traded["fills"]:
            if fill["account"] == account:
                console.print(
                    f"  {_clock(fill['traded_at'])} trade {fill['trade_id']}: {fill['side']} {price(fill['quantity'])} "
                    f"at {price(fill['price'])}, fee {price(fill['fee'])} {fill['fee_asset']}"
                )
        realized, fees, funding = (Decimal(position[name]) for name in ("realized_pnl", "fees", "funding"))
        ended = position["closed_at"] is not None
        console.print(
            f"  {_clock(position['closed_at'])} closed: {position['exit_reason']} at {price(position['exit_price'])},"
            if ended
            else f"  {position['status']},",
            "realised",
            money(realized),
            "fees",
            money(fees, coloured=False),
            "funding",
            money(funding),
            "net",
            money(realized - fees + funding),
        )


def _order_line(order: dict[str, Any]) -> str:
    trigger = f" triggered by {price(order['trigger_price'])}" if order["trigger_price"] else ""
    average = f" at {price(order['average_price'])}" if order["average_price"] else ""
    expected = f" (expected {price(order['expected_price'])})" if order["expected_price"] else ""
    detail = f": {order['detail']}" if order["detail"] else ""
    return (
        f"  {_clock(order['created_at'])} {LEGS.get(order['leg'], order['leg'])} {order['client_id']}: {order['kind']} "
        f"{order['side']}{trigger}, {order['status']} {price(order['filled'])} of {price(order['quantity'])}"
        f"{average}{expected}{detail}"
    )


def _clock(ms: int) -> str:
    """The instant to the millisecond."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


def _print_candles(console: Console, candles: dict[str, Any]) -> None:
    console.print(
        f"\ncandles: {candles['stored']} of {candles['wanted']} minutes, {candles['synthetic']} synthetic, "
        f"from {', '.join(candles['sources']) or 'nowhere'}",
        style="bold",
    )
    for gap in candles["gaps"]:
        repaired = f"repaired by {gap['repaired_by']}" if gap["repaired_by"] else "open"
        console.print(
            f"gap {utc_text(gap['from'])} to {utc_text(gap['to'])}: {gap['cause']}, {repaired}", style="yellow"
        )
    names = ("open", "high", "low", "close", "volume", "taker_buy_volume", "trades", "source")
    table = Table("closed at", *names, box=None, header_style="dim")
    for candle in candles["last"]:
        cells = [("" if candle[name] is None else str(candle[name])) for name in names]
        table.add_row(utc_text(candle["open_time"] + MINUTE_MS), *cells)
    console.print(table)


def _print_vector(console: Console, vector: list[dict[str, Any]]) -> None:
    if not vector:
        console.print("\nno vector: the model was not asked", style="bold")
        return
    console.print(
        f"\nvector of {len(vector)} (* critical, red beyond training, yellow clipped or missing)", style="bold"
    )
    across = max(1, min(5, console.width // 26))
    table = Table(*[Column(no_wrap=True) for _ in range(across)], box=None, show_header=False, pad_edge=False)
    cells = [_cell(entry) for entry in vector]
    for start in range(0, len(cells), across):
        table.add_row(*cells[start : start + across])
    console.print(table)


def _cell(entry: dict[str, Any]) -> Text:
    value = entry["value"]
    style = "red" if entry.get("unusual") else "yellow" if value is None or entry.get("clipped") else ""
    star = "*" if entry.get("critical") else ""
    return Text.assemble((f"{entry['name']}{star} ", "dim"), ("–" if value is None else f"{value:.5g}", style))


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
