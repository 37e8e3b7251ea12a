"""How trading looks on a terminal: what `status` and `demo --trade` draw of a worker's /status."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from perpline.cli.books import account_text, side_text

_STYLE = {"off": "bold reverse", "paper": "bold black on cyan", "live": "bold black on yellow"}
EVERY_COLUMN_WIDTH = 100
"""Below it the protective stop and the time of entry are left out."""


def trading_lines(trading: dict[str, Any] | None) -> list[Text]:
    """Modes, accounts, and why no entries are made, where that is so."""
    if trading is None:
        return []
    lines = [_mode_line(trading)]
    for name, each in trading["accounts"].items():
        idle = not each["positions"] and not each["entries"] and not each["closed"]
        if idle and name not in modes_in_force(trading):
            continue
        lines.append(_account_line(name, each))
        if each["blocked"]:
            lines.append(Text(f"{name} makes no entries: {each['blocked']}", "red"))
        if each["naked_ms"]:
            lines.append(Text(f"{name} has a position without a stop for {each['naked_ms'] / 1000:.1f} s", "bold red"))
        if each["rows_error"]:
            lines.append(Text(f"{each['unwritten']} rows of {name} wait for the database: {each['rows_error']}", "red"))
    if trading["waiting_for_lease"] and modes_in_force(trading) != {"off"}:
        waiting = ", ".join(trading["waiting_for_lease"])
        lines.append(Text(f"{waiting}: another process trades this account, or it has not begun", "yellow"))
    live = trading["live"]
    if live is not None and "live" in modes_in_force(trading):
        if not live["user_stream"]["live"]:
            lines.append(Text(f"the user data stream is lost: {live['user_stream']['last_error']}", "bold red"))
        if live["order_socket"] is False:
            lines.append(Text("the order socket is away: orders go over REST", "yellow"))
    return lines


def modes_in_force(trading: dict[str, Any]) -> set[str]:
    return {row["mode"] for row in trading["modes"]} or {"off"}


def is_mode_over(row: dict[str, Any]) -> bool:
    """Whether a row of /status is off because its time has passed."""
    return bool(row.get("set", row["mode"]) != row["mode"])


def mode_reason(row: dict[str, Any]) -> str:
    """Why the mode is what it is: "a test", or "its time is over (was live: a test)"."""
    if not is_mode_over(row):
        return str(row["reason"])
    return f"its time is over (was {row['set']}: {row['reason']})"


def _mode_line(trading: dict[str, Any]) -> Text:
    of_all = next((row for row in trading["modes"] if not row["symbol"]), None)
    mode = "off" if of_all is None else of_all["mode"]
    line = Text()
    line.append(f" {mode.upper()} ", _STYLE[mode])
    own = [row for row in trading["modes"] if row["symbol"]]
    live = [row["symbol"] for row in own if row["mode"] == "live" != mode]
    if live:
        line.append(f" LIVE {' '.join(live)} ", _STYLE["live"])
    if of_all is not None and (reason := mode_reason(of_all)):
        line.append(f"  {reason} ({of_all['by']})" if of_all["by"] else f"  {reason}", "dim")
    for row in own:
        if row["symbol"] not in live:
            line.append(f"  {row['symbol']} ").append(row["mode"], _STYLE[row["mode"]])
    return line


def _account_line(name: str, each: dict[str, Any]) -> Text:
    line = account_text(name)
    if each["equity"] is None:
        line.append("  its worth is not known yet", "not bold yellow")
    else:
        line.append(f"  equity {each['equity']:,.2f} USDT", "not bold")
    line.append(f"  {len(each['positions'])} open ").append_text(_amount(each["unrealized_pnl"]))
    line.append(f"  {each['closed']} closed ").append_text(_amount(each["net_pnl"]))
    line.append(f"  {each['refusals']} refused", "dim")
    if each["naked_ms_longest"]:
        line.append(f"  longest without a stop {each['naked_ms_longest'] / 1000:.1f} s", "dim")
    if each["alarms"]:
        line.append(f"  {each['alarms']} alarms", "red")
    return line


def _amount(amount: float | None) -> Text:
    if amount is None:
        return Text("–", "dim")
    return Text(f"{amount:+,.2f}", "not bold dim" if not amount else "green" if amount > 0 else "red")


def open_positions(trading: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Account and position, oldest first."""
    accounts = {} if trading is None else trading["accounts"]
    found = [(name, each) for name, account in accounts.items() for each in account["positions"]]
    return sorted(found, key=lambda pair: int(pair[1]["opened_at"]))


def positions_table(trading: dict[str, Any], limit: int | None = None, width: int = 120) -> Table:
    """A row an open position, the newest last; with more than `limit` the oldest are only counted."""
    wide = width >= EVERY_COLUMN_WIDTH
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True, expand=True)
    table.add_column("position", style="bold", no_wrap=True, min_width=8, overflow="ellipsis")
    table.add_column("", no_wrap=True, min_width=5)
    names = ("entry", "mark", "stop", "target", *(("at exchange",) if wide else ()), "PnL")
    for head in names:
        table.add_column(head, justify="right", no_wrap=True, min_width=6)
    table.add_column("protected", no_wrap=True, min_width=5, overflow="ellipsis")
    found = open_positions(trading)
    hidden = 0 if limit is None or len(found) <= limit else len(found) - max(1, limit - 1)
    for _, each in found[hidden:]:
        prices = [each["entry_price"], each["mark_price"], each["stop"], each["target"]]
        table.add_row(
            each["symbol"],
            side_text(each["side"]),
            *(_price(price) for price in prices),
            *([_price(each["protective_stop"])] if wide else []),
            _amount(each["unrealized_pnl"]),
            Text("yes", "green") if each["protected"] else Text(f"no, {each['naked_ms'] / 1000:.1f} s", "bold red"),
        )
    if hidden:
        table.add_row(Text(f"… {hidden} more", "dim"))
    return table


def event_lines(trading: dict[str, Any], limit: int) -> list[Text]:
    """What was opened and closed last, the newest first: "14:03:20 target BTCUSDT +0.40 USDT"."""
    events = [each for account in trading["accounts"].values() for each in account["recent"]]
    return [_event(each) for each in sorted(events, key=lambda each: -int(each["at"]))[:limit]]


def _event(each: dict[str, Any]) -> Text:
    seconds = each["at"] // 1000 % 86_400
    line = Text(f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d} ", "dim")
    if each["event"] == "opened":
        line.append("entry ", "not dim").append_text(side_text(each["side"]))
        return line.append(f" {each['symbol']} at {_price(each['price'])}", "not dim")
    line.append(f"{each['reason'].replace('_', ' ')} {each['symbol']} at {_price(each['price'])} ", "not dim bold")
    return line.append_text(_amount(each["net_pnl"])).append(" USDT", "not dim")


def exits_text(exits: dict[str, int]) -> str:
    return ", ".join(f"{count} by {reason.replace('_', ' ')}" for reason, count in exits.items()) or "none"


def _price(price: float | None) -> str:
    if price is None:
        return "–"
    return f"{price:,.2f}" if price >= 100 else f"{price:.6g}"


def shortened(lines: Sequence[Text]) -> list[Text]:
    """Lines that take one row each, however narrow the terminal."""
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return list(lines)
