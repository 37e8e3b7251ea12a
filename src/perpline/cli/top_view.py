"""What `perpline top` shows of a worker, as plain values: the picture, its columns and cells. Nothing here draws."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, field

from perpline.cli.status import STATUS_STYLES, STREAM_HEADS, clock_text, role_line
from perpline.cli.trading_view import is_mode_over, mode_reason, open_positions
from perpline.domain.candle import MINUTE_MS
from perpline.websocket.freshness import AT_LEAST_WALL_S, LIMITS_S

STREAMS = tuple(STREAM_HEADS)
SPARK = 24
"""How many closes a symbol's line has."""
BARS = "▁▂▃▄▅▆▇█"
SHAPES = {"off": "○", "paper": "◐", "live": "●"}
"""A mode is told by its word, its shape and its colour, so that it is told without colours too."""
MODE_STYLES = {"off": "dim", "paper": "bold cyan", "live": "bold yellow"}
MOST_NAMED = 5
"""So many symbols that are live by a mode of their own are named."""
LETTERS = {
    "A": "█▀▀█ █▀▀█ █  █",
    "E": "█▀▀▀ █▀▀▀ █▄▄▄",
    "F": "█▀▀▀ █▀▀▀ █   ",
    "I": "█ █ █",
    "L": "█    █    █▄▄▄",
    "O": "█▀▀█ █  █ █▄▄█",
    "P": "█▀▀█ █▀▀▀ █   ",
    "R": "█▀▀█ █▀█▀ █  █",
    "V": "█  █ █  █ ▀▄▄▀",
}


class Row(Struct):
    """One symbol."""

    symbol: str
    mode: str
    price: float | None
    bid: float | None
    ask: float | None
    spread_bps: float | None
    mark: float | None
    index: float | None
    funding: float | None
    next_funding: int | None
    ages: list[float | None]
    """Wall seconds since each of STREAMS was heard."""
    stale: list[str]
    """Those of STREAMS that should speak and are silent."""
    quiet: list[str]
    """Those that have been silent for longer than their limit, which may be their right: nobody trades."""
    last: dict[str, Any] | None
    """The last decision: close_time, status, side, p, detail."""
    is_last_closed: bool
    """Whether that decision is of the minute that closed last."""
    position: dict[str, Any] | None
    """The open one, as /status tells it, with its `account`; that of the account in force before the other's."""
    spark: list[float]
    """The last closes, oldest first."""


class Picture(Struct):
    """What is shown of a worker at one instant. Times in ms of the exchange, money in USDT."""

    now: int
    version: str
    slot: str
    model: str | None
    speed: float
    ready: bool
    leads: bool
    role: str
    """Whether it stands by and for whom, or that it only collects; empty for one that does everything."""
    trouble: list[str]
    mode: str
    mode_until: int | None
    mode_reason: str
    other_modes: dict[str, str]
    """Symbols whose mode differs."""
    account: str | None
    """The account whose money is shown; None where none has begun."""
    equity: float | None
    open_pnl: float | None
    closed_pnl: float | None
    """Of the positions that this worker has closed since its start, after fees."""
    positions: int
    closed: int
    connections: dict[str, int]
    """live, all, streams, silent."""
    messages_per_s: float
    weight: dict[str, int]
    """used, limit."""
    close_to_signal_ms: dict[str, float | None]
    """p50, p99."""
    decisions: dict[str, int]
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def live_by_name(self) -> list[str]:
        """Symbols that trade with real money though the mode is another."""
        return [symbol for symbol, mode in self.other_modes.items() if mode == "live"]

    @property
    def boldest_mode(self) -> str:
        """What is written large: live where any symbol is, else the mode."""
        return "live" if self.live_by_name else self.mode


class Closes:
    """The last closes of each symbol: what the database had at the start, and what the worker tells since."""

    def __init__(self) -> None:
        self._closes: dict[str, deque[tuple[int, float]]] = {}

    def add_stored(self, stored: Mapping[str, Sequence[tuple[int, float]]], now: int) -> None:
        """Older ones, open time and close, where they reach the present: a database that stands still is not this
        worker's."""
        for symbol, closes in stored.items():
            known = self._closes.get(symbol)
            first = known[0][0] if known else now
            older = [each for each in closes if each[0] < first]
            if older and first - older[-1][0] <= SPARK * MINUTE_MS:
                self._closes[symbol] = deque([*older, *(known or ())], maxlen=SPARK)

    def take(self, facts: Mapping[str, Any]) -> None:
        """The last candle of each symbol in a /status."""
        for symbol, entry in facts["symbols"].items():
            candle = entry["last_candle"]
            if candle is None:
                continue
            known = self._closes.setdefault(symbol, deque(maxlen=SPARK))
            if not known or known[-1][0] < candle["open_time"]:
                known.append((candle["open_time"], candle["close"]))

    def of(self, symbol: str) -> list[float]:
        return [close for _, close in self._closes.get(symbol, ())]


def picture(facts: dict[str, Any], closes: Closes) -> Picture:
    """Of the /status of a worker that hears a market."""
    trading = facts["trading"]
    modes = {} if trading is None else {row["symbol"]: row for row in trading["modes"]}
    mode = modes[""]["mode"] if "" in modes else "off"
    other_modes = {symbol: row["mode"] for symbol, row in modes.items() if symbol and row["mode"] != mode}
    account_name, account = _account(trading, mode, other_modes)
    leadership, role = facts["leadership"], role_line(facts)
    connections, rest = facts["connections"], facts["rest"]
    positions: dict[str, dict[str, Any]] = {}
    for name, held in open_positions(trading):
        if name == account_name or held["symbol"] not in positions:
            positions[held["symbol"]] = {"account": name, **held}
    stale = _stale(facts)
    limits = {kind: max(limit / facts["speed"], AT_LEAST_WALL_S) for kind, limit in LIMITS_S.items()}
    is_heard = facts["streams"] is not None  # else the worker is fed by REST, whose rhythm is another
    is_cut = any(not each["live"] for each in connections)
    rows = {}
    for symbol, entry in facts["symbols"].items():
        silent = stale.get(symbol, set())
        quiet: set[str] = set()
        for kind, age in entry["ages_s"].items() if is_heard else ():
            if age is None or age > limits[kind]:
                # A mark price comes every second; books and candles may rest, but not while their connection is cut.
                (silent if age is None or kind == "markPrice@1s" or is_cut else quiet).add(kind)
        rows[symbol] = _row(symbol, entry, modes.get(symbol, {}).get("mode", mode), silent, quiet)
        rows[symbol].position = positions.get(symbol)
        rows[symbol].spark = closes.of(symbol)
    return Picture(
        now=facts["now"],
        version=facts["version"],
        slot=facts["slot"],
        model=facts["model"],
        speed=facts["speed"],
        ready=facts["ready"],
        leads=leadership is None or leadership["leads"],
        role="" if role is None else role.plain,
        trouble=list(facts["trouble"]),
        mode=mode,
        mode_until=modes[""]["until"] if "" in modes and not is_mode_over(modes[""]) else None,
        mode_reason=mode_reason(modes[""]) if "" in modes else "",
        other_modes=other_modes,
        account=account_name,
        equity=None if account is None else account["equity"],
        open_pnl=None if account is None else account["unrealized_pnl"],
        closed_pnl=None if account is None else account["net_pnl"],
        positions=0 if account is None else len(account["positions"]),
        closed=0 if account is None else account["closed"],
        connections={
            "live": sum(each["live"] for each in connections),
            "all": len(connections),
            "streams": sum(each["streams"] for each in connections),
            "silent": sum(each["silent_count"] for each in connections),
        },
        messages_per_s=facts["messages"]["rates"].get("total", 0.0),
        weight={"used": rest["weight_used"], "limit": rest["weight_limit"]},
        close_to_signal_ms={name: facts["decisions"]["close_to_signal_ms"][name] for name in ("p50", "p99")},
        decisions=facts["decisions"]["by_status"],
        rows=rows,
    )


def _account(
    trading: dict[str, Any] | None, mode: str, other_modes: Mapping[str, str]
) -> tuple[str | None, dict[str, Any] | None]:
    """The live account where any symbol is live, or it holds something or moved today, as on the dashboard; else the
    one that the mode names; with mode off the one that still holds something, or has traded."""
    accounts = {} if trading is None else trading["accounts"]
    live = accounts.get("live")
    if live is not None:
        has_moved = live.get("day_equity") not in (None, live["equity"])
        if "live" in (mode, *other_modes.values()) or live["positions"] or has_moved:
            return "live", live
    if mode in accounts:
        return mode, accounts[mode]
    for wanted in ("positions", "closed"):
        for name, account in accounts.items():
            if account[wanted]:
                return name, account
    return None, None


def _row(symbol: str, entry: dict[str, Any], mode: str, stale: set[str], quiet: set[str]) -> Row:
    decision, candle = entry["last_decision"], entry["last_candle"]
    return Row(
        symbol=symbol,
        mode=mode,
        price=entry["price"],
        bid=entry["bid"],
        ask=entry["ask"],
        spread_bps=entry["spread_bps"],
        mark=entry["mark_price"],
        index=entry["index_price"],
        funding=entry["funding_rate"],
        next_funding=entry["next_funding_time"],
        ages=[entry["ages_s"][kind] for kind in STREAMS],
        stale=[kind for kind in STREAMS if kind in stale],
        quiet=[kind for kind in STREAMS if kind in quiet],
        last=decision,
        is_last_closed=decision is not None
        and (candle is None or decision["close_time"] >= candle["open_time"] + MINUTE_MS),
        position=None,
        spark=[],
    )


def _stale(facts: dict[str, Any]) -> dict[str, set[str]]:
    """What the worker itself calls stale: symbol → streams."""
    found: dict[str, set[str]] = {}
    for names in (facts["streams"] or facts.get("rest_feed") or {"stale": {}})["stale"].values():
        for symbol, kind in (name.split(" ", 1) for name in names):
            found.setdefault(symbol, set()).add(kind)
    return found


# ---- columns and cells


class Cell(NamedTuple):
    """Text and a style in rich's words."""

    text: str
    style: str = ""


EMPTY = Cell("")


class Column(NamedTuple):
    """`rank`: where the terminal is narrow, the columns of the highest rank go to the right end first, and are reached
    with the arrow keys. `key` orders rows (None: last); the best comes first with `descending`."""

    name: str
    head: str
    width: int
    right: bool
    rank: int
    cell: Callable[[Row, int], Cell]
    """Of a row, at this width."""
    key: Callable[[Row], Any]
    descending: bool = True


def columns_for(width: int, symbols: Iterable[str]) -> tuple[list[Column], int]:
    """The columns in their order, and how many of them this width shows without scrolling.

    Rows are as wide as the columns with a blank after each. What is left over goes to the decision.
    """
    longest = max(map(len, symbols), default=0)
    columns = [each._replace(width=max(each.width, longest)) if each.name == "symbol" else each for each in COLUMNS]
    shown = [each for each in columns if each.name != "oldest"]
    for rank in sorted({each.rank for each in columns} - {0}, reverse=True):
        if _width(shown) <= width:
            break
        shown = [each for each in shown if each.rank != rank]
        if rank == AGES_RANK:
            shown.insert(-3, next(each for each in columns if each.name == "oldest"))
    beyond = [each for each in columns if each not in shown and each.name != "oldest"]
    spare = max(0, width - _width(shown))
    more_position = min(spare, WIDE_POSITION - NARROW_POSITION) if spare >= 20 else 0
    wider = {"decision": min(spare - more_position, 60), "position": more_position}
    shown = [each._replace(width=each.width + wider.get(each.name, 0)) for each in shown]
    return shown + beyond, len(shown)


def _width(columns: Sequence[Column]) -> int:
    return sum(each.width + 1 for each in columns)


def _mode(row: Row, width: int) -> Cell:
    return Cell(SHAPES[row.mode], MODE_STYLES[row.mode])


def _price(price: float | None) -> Cell:
    """With as many decimals as its size wants, always the same, so that the point stands still."""
    if price is None:
        return EMPTY
    decimals = 2 if price >= 1000 else 3 if price >= 100 else 4 if price >= 10 else 5 if price >= 0.1 else 8
    return Cell(f"{price:,.{decimals}f}")


def _spread(row: Row, width: int) -> Cell:
    return EMPTY if row.spread_bps is None else Cell(f"{row.spread_bps:.2f}")


def _funding(row: Row, width: int) -> Cell:
    return EMPTY if row.funding is None else Cell(f"{row.funding * 100:+.4f}", "" if row.funding >= 0 else "magenta")


def _age_of(place: int) -> Callable[[Row, int], Cell]:
    return lambda row, width: _age(row, place)


def _age(row: Row, place: int) -> Cell:
    age, kind = row.ages[place], STREAMS[place]
    if age is None:
        return Cell("none", "bold red" if kind in row.stale else "dim")
    if kind in row.stale:
        return Cell(f"!{min(age, 999):.0f}s", "bold red")  # told without colours too
    return Cell(f"{age:.1f}s" if age < 100 else f"{min(age, 9999):.0f}s", "yellow" if kind in row.quiet else "dim")


def _age_key_of(place: int) -> Callable[[Row], Any]:
    return lambda row: float("inf") if row.ages[place] is None else row.ages[place]


def _worst(row: Row) -> int:
    """The stream that is silent for the longest, one that should not be before the others."""
    return max(range(len(STREAMS)), key=lambda place: (STREAMS[place] in row.stale, _age_key_of(place)(row)))


def _oldest(row: Row, width: int) -> Cell:
    place = _worst(row)
    text, style = _age(row, place)
    return Cell(f"{STREAM_HEADS[STREAMS[place]]} {text}", style)


def _decision(row: Row, width: int) -> Cell:
    last = row.last
    if last is None:
        return Cell(" none yet", "dim")
    late = "" if row.is_last_closed else f" at {clock_text(last['close_time'])}"
    if last["side"]:
        word, style = ("▲ long ", "bold green") if last["side"] > 0 else ("▼ short", "bold magenta")
        probability = "" if last["p"] is None else f" p {last['p']:.3f}"
        return Cell(f" {word}{probability}{late}", style)
    return Cell(f" {last['status']}{late}: {last['detail']}", STATUS_STYLES.get(last["status"], "red"))


def _decision_key(row: Row) -> Any:
    """Signals by probability, then what came near, then what was not even asked."""
    return None if row.last is None else (bool(row.last["side"]), row.last["p"] or 0.0)


def _position(row: Row, width: int) -> Cell:
    held = row.position
    if held is None:
        return EMPTY
    side, style = ("▲", "green") if held["side"] > 0 else ("▼", "magenta")
    text = f"{side} {_quantity_text(held['quantity'])}"
    if width >= WIDE_POSITION and held["entry_price"] is not None:
        text += f" @ {_price(held['entry_price']).text}"
    if not held["protected"]:
        return Cell(f"! {text}", "bold red")
    return Cell(text, style)


def _quantity_text(quantity: float) -> str:
    """Every digit of it, in the least room: 1234567 and 0.003."""
    return f"{quantity:.8f}".rstrip("0").rstrip(".")


def _position_key(row: Row) -> Any:
    held = row.position
    return None if held is None else abs(held["quantity"] * (held["mark_price"] or held["entry_price"] or 0.0))


def _pnl(row: Row, width: int) -> Cell:
    pnl = None if row.position is None else row.position["unrealized_pnl"]
    return EMPTY if pnl is None else amount_cell(pnl)


def amount_cell(amount: float | None) -> Cell:
    """Money with its sign, green above and red below zero."""
    if amount is None:
        return Cell("–", "dim")
    return Cell(f"{amount:+,.2f}", "dim" if round(amount, 2) == 0 else "green" if amount > 0 else "red")


def _spark(row: Row, width: int) -> Cell:
    closes = row.spark[-width:]
    if len(closes) < 2:
        return EMPTY
    low, high = min(closes), max(closes)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(BARS[round((close - low) * scale)] for close in closes)
    return Cell(f"{bars:>{width}}", "dim green" if closes[-1] >= closes[0] else "dim magenta")


def _change(row: Row) -> Any:
    return row.spark[-1] / row.spark[0] - 1 if len(row.spark) > 1 else None


FIXED = 2
"""The first columns stay where they are while others are scrolled to."""
AGES_RANK = 5
NARROW_POSITION, WIDE_POSITION = 10, 20
COLUMNS: tuple[Column, ...] = (
    Column("mode", "", 1, False, 0, _mode, lambda row: list(SHAPES).index(row.mode)),
    Column("symbol", "symbol", 7, False, 0, lambda row, width: Cell(row.symbol, "bold"), lambda row: row.symbol, False),
    Column("price", "price", 10, True, 0, lambda row, width: _price(row.price), lambda row: row.price),
    Column("spark", "closes", 12, True, 2, _spark, _change),
    Column("spread", "bp", 5, True, 3, _spread, lambda row: row.spread_bps),
    Column("mark", "mark", 10, True, 6, lambda row, width: _price(row.mark), lambda row: row.mark),
    Column("funding", "fund %", 7, True, 4, _funding, lambda row: row.funding),
    *(
        Column(f"age_{head}", head, 5, True, AGES_RANK, _age_of(place), _age_key_of(place))
        for place, head in enumerate(STREAM_HEADS.values())
    ),
    Column("oldest", "oldest", 10, True, 1, _oldest, lambda row: _age_key_of(_worst(row))(row)),
    Column("decision", " decision", 18, False, 0, _decision, _decision_key),
    Column("position", "position", NARROW_POSITION, False, 1, _position, _position_key),
    Column("pnl", "PnL", 8, True, 0, _pnl, lambda row: row.position and row.position["unrealized_pnl"]),
)


def cells_of(row: Row, columns: Sequence[Column]) -> tuple[Cell, ...]:
    """Each as wide as its column; what is longer ends in …"""
    found = []
    for column in columns:
        text, style = column.cell(row, column.width)
        if len(text) > column.width:
            text = text[: column.width - 1] + "…"
        found.append(Cell(f"{text:>{column.width}}" if column.right else f"{text:<{column.width}}", style))
    return tuple(found)


def chosen(
    rows: Iterable[Row], sort: Column | None, reverse: bool, pattern: str = "", only_decided: bool = False
) -> list[Row]:
    """The rows to show, in order. Without `sort` in the worker's order; rows without a value come last.

    `pattern` is a part of the symbol, of the status or of the mode, in any case; `only_decided` keeps signals of the
    minute that closed last and open positions.
    """
    wanted = pattern.strip().lower()
    found = [
        row
        for row in rows
        if (not only_decided or row.position is not None or _is_signal(row)) and (not wanted or _matches(row, wanted))
    ]
    if sort is None:
        return found[::-1] if reverse else found
    keyed = [(sort.key(row), row) for row in found]
    with_value = [pair for pair in keyed if pair[0] is not None]
    with_value.sort(key=lambda pair: pair[0], reverse=sort.descending != reverse)
    return [row for _, row in with_value] + [row for key, row in keyed if key is None]


def _is_signal(row: Row) -> bool:
    return row.last is not None and bool(row.last["side"]) and row.is_last_closed


def _matches(row: Row, wanted: str) -> bool:
    status = "" if row.last is None else str(row.last["status"])
    return wanted in row.symbol.lower() or wanted in status or wanted == row.mode


# ---- the head


def big(word: str) -> list[str]:
    """The word in letters of three lines."""
    glyphs = [LETTERS[letter] for letter in word.upper()]
    # A line of a glyph may end in blanks: three equal parts with a blank between them.
    sizes = [(len(glyph) - 2) // 3 for glyph in glyphs]
    return [
        " ".join(glyph[line * (size + 1) : line * (size + 1) + size] for glyph, size in zip(glyphs, sizes, strict=True))
        for line in range(3)
    ]


def weight_bar(weight: Mapping[str, int], width: int) -> Cell:
    """Request weight of this minute against what is allowed; yellow from 60 %, red from 80 %."""
    share = weight["used"] / weight["limit"] if weight["limit"] else 0.0
    filled = min(width, round(share * width)) or (1 if weight["used"] else 0)
    style = "red" if share >= 0.8 else "yellow" if share >= 0.6 else "green"
    return Cell("█" * filled + "░" * (width - filled), style)


def time_text(time_ms: int) -> str:
    """HH:MM:SS."""
    seconds = time_ms // 1000 % 86_400
    return f"{clock_text(time_ms)}:{seconds % 60:02d}"


def ms_text(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "–"
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def live_names(shown: Picture) -> str:
    """The symbols that are live though the mode is another: the first by name, the others counted."""
    more = len(shown.live_by_name) - MOST_NAMED
    return " ".join(shown.live_by_name[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def mode_note(shown: Picture) -> str:
    """Which symbols alone are live and what all others are, until when the mode is in force, and which differ."""
    parts = []
    if live := live_names(shown):
        parts += [f"only {live}", f"all others {shown.mode}"]
    if shown.mode_until is not None:
        parts.append(f"until {clock_text(shown.mode_until)}")
    others = [(symbol, mode) for symbol, mode in shown.other_modes.items() if mode != "live"]
    if others:
        symbol, mode = others[0]
        parts.append(f"{symbol} {mode}" if len(others) == 1 else f"{len(others)} symbols differ")
    return ", ".join(parts)


def state_line(shown: Picture) -> list[Cell]:
    """Whether it is ready, leads, and what it is; in the order of their weight."""
    parts = [Cell(" ready " if shown.ready else " not ready ", "bold green" if shown.ready else "bold yellow")]
    if shown.role:
        parts.append(Cell(f" {shown.role} ", "bold yellow" if not shown.leads else ""))
    elif shown.leads:
        parts.append(Cell(" leads ", "green"))
    speed = f" ×{shown.speed:g}" if shown.speed != 1 else ""
    parts.append(Cell(f" {time_text(shown.now)} UTC{speed} ", "bold"))
    parts.append(Cell(f" {shown.slot} {shown.model or 'no model'} ", "dim" if shown.model else "red"))
    counts = ", ".join(f"{count:,} {status}" for status, count in shown.decisions.items() if count)
    parts.append(Cell(f" decided: {counts or 'nothing yet'}", "dim"))
    return parts


def plain_lines(shown: Picture, width: int) -> list[list[Cell]]:
    """One page for a pipe or a printer: the head in three lines, trouble, a line a symbol."""
    latency, money = shown.close_to_signal_ms, amount_cell(shown.open_pnl)
    connections = shown.connections
    equity = "–" if shown.equity is None else f"{shown.equity:,.2f} USDT"
    word = shown.boldest_mode
    mode = Cell(f"{SHAPES[word]} {word.upper()}", MODE_STYLES[word])
    lines = [
        [mode, Cell(f" {mode_note(shown)} "), *state_line(shown)],
        [
            Cell(f"{shown.account or 'no account'}: equity {equity}, {shown.positions} open "),
            money,
            Cell(f", {shown.closed} closed "),
            amount_cell(shown.closed_pnl),
        ],
        [
            Cell(
                f"{connections['live']} of {connections['all']} connections live, {connections['streams']} streams, "
                f"{connections['silent']} silent; weight {shown.weight['used']:,} of {shown.weight['limit']:,}; "
                f"close to signal p50 {ms_text(latency['p50'])} ms, p99 {ms_text(latency['p99'])} ms"
            )
        ],
        *([Cell(f"! {each}", "red")] for each in shown.trouble),
        [],
    ]
    columns, fitting = columns_for(width, shown.rows)
    columns = columns[:fitting]
    lines.append([Cell(part.text + " ", "bold") for part in heads(columns)])
    for row in shown.rows.values():
        lines.append([Cell(cell.text + " ", cell.style) for cell in cells_of(row, columns)])
    return lines


def heads(columns: Sequence[Column], sort: Column | None = None, descending: bool = True) -> list[Cell]:
    """The first line of the table: the sorted column has an arrow."""
    found = []
    for column in columns:
        is_sorted = sort is not None and column.name == sort.name
        text = column.head + (("▼" if descending else "▲") if is_sorted else "")
        text = text[: column.width]
        found.append(Cell(f"{text:>{column.width}}" if column.right else f"{text:<{column.width}}", "bold"))
    return found
