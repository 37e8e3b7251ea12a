"""The screen of `perpline top`, drawn with textual. What it shows is made in top_view."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.geometry import Region, Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.theme import Theme
from textual.widgets import Digits, Footer, Input, Static

from perpline.cli.top_view import (
    COLUMNS,
    FIXED,
    SHAPES,
    Cell,
    Closes,
    Column,
    Picture,
    Row,
    amount_cell,
    big,
    cells_of,
    chosen,
    columns_for,
    heads,
    live_names,
    mode_note,
    ms_text,
    picture,
    state_line,
    time_text,
    weight_bar,
)
from perpline.common.clock import Clock
from perpline.common.errors import PerplineError

EVERY_S = 1.0
WIDE = 130
"""From this width on money and latency have a card each; below they are lines beside the mode."""
TROUBLE_LINES = 3
"""Of the screen, at most; the last says how many more there are."""
CURSOR = Style(bgcolor="#24364f")
CURSOR_UNCOLOURED = Style(reverse=True)
THEME = Theme(
    name="perpline",
    primary="#58a6ff",
    secondary="#8b949e",
    warning="#e3b341",
    error="#ff7b72",
    success="#56d364",
    accent="#58a6ff",
    foreground="#c9d1d9",
    background="#0d1117",
    surface="#0d1117",
    panel="#161b22",
    boost="#161b22",
    dark=True,
    variables={"footer-background": "#161b22", "footer-key-foreground": "#58a6ff"},
)
COLOURS = {
    "green": "#56d364",
    "red": "#ff7b72",
    "yellow": "#e3b341",
    "cyan": "#56d4dd",
    "magenta": "#d2a8ff",
    "dim": "#7d8590",
    "dim green": "#2f7d44",
    "dim magenta": "#6f5a94",
}
"""The words of top_view's styles in colours that can be read on the dark ground."""

HELP = """\
[b]Keys[/b]

  ↑ ↓ PgUp PgDn Home End   choose a symbol; j and k too
  ← →                      columns that have no room
  s, S                     sort by the next column; turn the order round
                           (a click on a head does both)
  /                        show only symbols, statuses or modes with this text; Esc shows all
  d                        only signals of the last minute and open positions
  e, Enter                 why the last decision of the symbol is what it is
  m                        the commands that change the mode
  q                        quit

[b]What is shown[/b]

  ○ off  ◐ paper  ● live   the mode, and each symbol's
  closes                   the last minutes of the price
  1m 15m 1h mark book      how long ago each stream was heard, in seconds of the wall clock
                           [red]!12s[/red] should speak and is silent; [yellow]25.0s[/yellow] rests, maybe rightly
  position [red]![/red]               no stop rests at the exchange

Grey means that the worker does not answer: it is the last that it said.
"""

Fetch = Callable[[], Awaitable[dict[str, Any]]]
"""/status; raises PerplineError while the worker is away."""
Explain = Callable[[str, int, int], Awaitable[Text]]
"""(symbol, close_time, width) -> the page of `perpline explain`; raises PerplineError."""


class TopApp(App[None]):
    """The overview of one worker. Asks it every `every_s` wall seconds, or, with None, when `look` is called."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "perpline top"
    CSS = """
    Screen { background: $background; }
    #head { height: 5; }
    #mode { width: 27; height: 5; border: round $secondary; content-align: center middle; }
    #mode.off { border: dashed $secondary; color: $secondary; }
    #mode.paper { border: round #56d4dd; color: #56d4dd; }
    #mode.live { border: heavy #e3b341; color: #e3b341; text-style: bold; }
    #mode.somelive { border-subtitle-color: #e3b341; border-subtitle-style: bold reverse; }
    #lines { width: 1fr; height: 5; padding: 0 1; }
    #cards { width: 1fr; height: 5; display: none; }
    Card { width: 1fr; height: 5; border: round #30363d; padding: 0 1; border-title-color: $secondary;
           border-subtitle-color: $foreground; content-align: center middle; align: center middle; }
    Card Digits { width: 100%; text-align: center; }
    Card Digits.good { color: #56d364; }
    Card Digits.bad { color: #ff7b72; }
    Card Static { width: 100%; }
    #feed { width: 32; padding: 0; }
    .wide #lines { display: none; }
    .wide #cards { display: block; }
    #state { height: 1; }
    #trouble { height: auto; max-height: 3; display: none; }
    #trouble.some { display: block; }
    SymbolTable { height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0;
                  scrollbar-color: #30363d; scrollbar-background: $background; }
    #filter { display: none; height: 1; border: none; padding: 0 1; background: $panel; }
    #filter.shown { display: block; }
    .away #head, .away SymbolTable { opacity: 45%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "sort"),
        Binding("S", "reverse", "reverse", key_display="S"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("d", "decided", "decided"),
        Binding("e", "explain", "explain"),
        Binding("m", "mode", "mode"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("escape", "show_all", show=False),
    ]

    def __init__(
        self,
        fetch: Fetch,
        explain: Explain,
        closes: Closes,
        clock: Clock,
        *,
        first: dict[str, Any],
        load_closes: Callable[[], Awaitable[None]] | None = None,
        every_s: float | None = EVERY_S,
        plain: bool = False,
    ) -> None:
        """`first` is a /status to begin with; `load_closes` fetches older closes into `closes`, once, beside the
        drawing. `plain`: without any colour, as NO_COLOR asks."""
        super().__init__(ansi_color=plain)
        self.register_theme(THEME)
        self.theme = THEME.name
        self._fetch = fetch
        self._explain = explain
        self._closes = closes
        self._clock = clock
        self._load_closes = load_closes
        self._every_s = every_s
        closes.take(first)
        self.picture: Picture = picture(first, closes)
        self.away = ""
        """Why the worker does not answer; empty while it does."""
        self._heard_at = clock.wall_s()
        self.table = SymbolTable(CURSOR_UNCOLOURED if plain else CURSOR)

    def compose(self) -> ComposeResult:
        with Horizontal(id="head"):
            yield Static(id="mode")
            yield Static(id="lines")
            with Horizontal(id="cards"):
                yield Card("equity")
                yield Card("open")
                yield Card("latency")
                with Card("feed", title="feed", digits=False):
                    yield Static(id="feedlines")
        yield Static(id="state")
        yield Static(id="trouble")
        yield self.table
        yield Input(id="filter", placeholder="a part of a symbol, a status, a mode · Enter keeps, Esc shows all")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.table.focus()
        self._draw()
        if self._load_closes is not None:
            self.run_worker(self._load(), name="closes")
        if self._every_s is not None:
            self.run_worker(self._look_for_ever(self._every_s), name="look")

    def on_resize(self, event: events.Resize) -> None:
        self.screen.set_class(event.size.width >= WIDE, "wide")
        self._draw()

    # ---- the worker's news

    async def look(self) -> None:
        """Ask the worker and draw what it says; while it is away the last picture stays, and turns grey."""
        try:
            facts = await self._fetch()
            self._closes.take(facts)
            self.picture = picture(facts, self._closes)
        except PerplineError as error:
            self.away = str(error)
        except (KeyError, TypeError, AttributeError) as error:
            # A worker of another version: its status has another shape, and whatever is missing, this is what to say.
            self.away = f"it speaks otherwise than this version of perpline: {type(error).__name__} {error}"
        else:
            self.away = ""
            self._heard_at = self._clock.wall_s()
        self._draw()

    async def _look_for_ever(self, every_s: float) -> None:
        while True:
            began = self._clock.wall_s()
            await self.look()
            await self._clock.sleep_wall(max(0.1, every_s - (self._clock.wall_s() - began)))

    async def _load(self) -> None:
        assert self._load_closes is not None
        await self._load_closes()
        for symbol, row in self.picture.rows.items():
            row.spark = self._closes.of(symbol)
        self._draw()

    def _draw(self) -> None:
        base = self.screen_stack[0]
        shown, width = self.picture, self.size.width
        base.set_class(bool(self.away), "away")
        mode = base.query_one("#mode", Static)
        word = shown.boldest_mode
        mode.set_classes(f"{word} somelive" if shown.live_by_name else word)
        mode.update("\n".join(big(word)))
        mode.border_title = f"{SHAPES[word]} mode"
        mode.border_subtitle = mode_note(shown) or None
        if width >= WIDE:
            self._draw_cards(shown)
        else:
            base.query_one("#lines", Static).update(text_of(*summary(shown, width - 30)))
        base.query_one("#state", Static).update(self._state())
        trouble = shown.trouble
        if len(trouble) > TROUBLE_LINES:
            trouble = [*trouble[: TROUBLE_LINES - 1], f"and {len(trouble) - TROUBLE_LINES + 1} more: perpline status"]
        lines = base.query_one("#trouble", Static)
        lines.set_class(bool(trouble), "some")
        lines.update(text_of(*([Cell(f" ! {each}", "bold red")] for each in trouble)))
        self.table.show(shown.rows)

    def _draw_cards(self, shown: Picture) -> None:
        base = self.screen_stack[0]
        latency, connections = shown.close_to_signal_ms, shown.connections
        equity = [] if shown.equity is None else [f"{shown.equity:,.2f}", f"{shown.equity:,.0f}"]
        base.query_one("#equity", Card).show(f"{shown.account or ''} equity USDT", equity)
        pnl = [] if shown.open_pnl is None else [f"{shown.open_pnl:+,.2f}", f"{shown.open_pnl:+,.0f}"]
        closed = "" if shown.closed_pnl is None else f"{shown.closed} closed {shown.closed_pnl:+,.2f}"
        style = {"green": "good", "red": "bad"}.get(amount_cell(shown.open_pnl).style, "")
        base.query_one("#open", Card).show(f"PnL of {shown.positions} open", pnl, closed, style)
        p50 = [] if latency["p50"] is None else [ms_text(latency["p50"])]
        base.query_one("#latency", Card).show("close to signal ms", p50, f"p50 · p99 {ms_text(latency['p99'])}")
        live = "green" if connections["live"] == connections["all"] else "bold red"
        dots = "●" * min(connections["live"], 12), "○" * min(connections["all"] - connections["live"], 12)
        lost = connections["silent"]
        base.query_one("#feedlines", Static).update(
            text_of(
                [
                    Cell(dots[0], "green"),
                    Cell(dots[1], "bold red"),
                    Cell(" ", ""),
                    Cell(self._connections_text(), live),
                ],
                [Cell(f"{shown.messages_per_s:,.0f} msg/s  "), Cell(f"{lost} silent", "bold red" if lost else "dim")],
                [
                    Cell("weight ", "dim"),
                    weight_bar(shown.weight, 10),
                    Cell(f" {shown.weight['used']:,}/{shown.weight['limit']:,}"),
                ],
            )
        )

    def _connections_text(self) -> str:
        connections = self.picture.connections
        if not connections["all"]:
            return "fed by REST"
        return f"{connections['live']}/{connections['all']} live, {connections['streams']:,} streams"

    def _state(self) -> Text:
        if self.away:
            away_s = self._clock.wall_s() - self._heard_at
            said = f" AWAY for {away_s:.0f} s, since {time_text(self.picture.now)} UTC "
            line = text_of([Cell(said, "bold red reverse"), Cell(f" {self.away}", "red")])
        else:
            line = text_of(state_line(self.picture))
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    # ---- keys

    def action_sort(self) -> None:
        """The worker's own order, then by each column; by the mode last."""
        columns = [*self.table.columns[1:], *self.table.columns[:1]]
        names = [None, *(column.name for column in columns)]
        place = names.index(self.table.sort) if self.table.sort in names else 0
        self.table.sort_by(names[(place + 1) % len(names)])

    def action_reverse(self) -> None:
        self.table.sort_by(self.table.sort, not self.table.reverse)

    def action_decided(self) -> None:
        self.table.only_decided = not self.table.only_decided
        self.table.show(self.picture.rows)

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.add_class("shown")
        field.focus()

    def action_show_all(self) -> None:
        """No filter."""
        field = self.query_one("#filter", Input)
        field.value = ""
        field.remove_class("shown")
        self.table.pattern, self.table.only_decided = "", False
        self.table.focus()
        self.table.show(self.picture.rows)

    def on_input_changed(self, event: Input.Changed) -> None:
        self.table.pattern = event.value
        self.table.show(self.picture.rows)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            self.action_show_all()
        self.table.focus()

    def action_mode(self) -> None:
        row = self.table.chosen_row
        symbol = "BTCUSDT" if row is None else row.symbol
        lines = [
            f"The mode is {self.picture.mode}{': ' + self.picture.mode_reason if self.picture.mode_reason else ''}.",
            *([f"But these are LIVE by a mode of their own: {live}."] if (live := live_names(self.picture)) else []),
            "It is changed with a reason, in another terminal:",
            "",
            '  perpline mode paper --reason "…"                  signals become positions on paper',
            '  perpline mode live --for 8h --reason "…"          with real orders, for a time',
            '  perpline mode off --reason "…"                    no more entries; positions keep their stops',
            f'  perpline mode off {symbol} --reason "…"',
            "",
            "  perpline flatten                                  close everything, mode off",
        ]
        self.push_screen(Page("mode", Text("\n".join(lines))))

    def action_help(self) -> None:
        self.push_screen(Page("perpline top", Text.from_markup(HELP)))

    def action_explain(self) -> None:
        row = self.table.chosen_row
        if row is None or row.last is None:
            self.notify("nothing was decided about it yet" if row else "no symbol is chosen")
            return
        page = Page(f"why {row.symbol} was decided so", Text("reading the database …", "dim"))
        self.push_screen(page)
        self.run_worker(self._fill(page, row.symbol, row.last["close_time"]), name="explain", exclusive=False)

    async def _fill(self, page: "Page", symbol: str, close_time: int) -> None:
        try:
            text = await self._explain(symbol, close_time, max(40, self.size.width - 12))
        except PerplineError as error:
            text = Text(str(error), "red")
        page.fill(text)


def text_of(*lines: Sequence[Cell]) -> Text:
    """Lines of cells, in the screen's colours."""
    text = Text("\n").join(Text.assemble(*((cell.text, _coloured(cell.style)) for cell in line)) for line in lines)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _coloured(style: str) -> str:
    return COLOURS.get(style) or " ".join(COLOURS.get(word, word) for word in style.split())


_STYLES: dict[str, Style] = {}


def _style(words: str) -> Style:
    if words not in _STYLES:
        _STYLES[words] = Style.parse(_coloured(words)) if words else Style.null()
    return _STYLES[words]


def summary(shown: Picture, width: int) -> list[list[Cell]]:
    """Beside the mode, where there is no room for cards."""
    connections, latency, weight = shown.connections, shown.close_to_signal_ms, shown.weight
    equity = "–" if shown.equity is None else f"{shown.equity:,.2f}"
    is_live = connections["live"] == connections["all"]
    heard = f"{connections['live']}/{connections['all']} connections" if connections["all"] else "fed by REST"
    lost = connections["silent"]
    return [
        [Cell(f"{shown.account or 'no account'} equity ", "dim"), Cell(equity, "bold"), Cell(" USDT", "dim")],
        [
            Cell(f"{shown.positions} open ", "dim"),
            amount_cell(shown.open_pnl),
            Cell(f"   {shown.closed} closed ", "dim"),
            amount_cell(shown.closed_pnl),
        ],
        [
            Cell("● " if is_live else "○ ", "green" if is_live else "bold red"),
            Cell(heard, "" if is_live else "bold red"),
            Cell(f"  {lost} silent", "bold red" if lost else "dim"),
            Cell(f"  {shown.messages_per_s:,.0f} msg/s", "dim"),
        ],
        [
            Cell("close to signal ", "dim"),
            Cell(f"p50 {ms_text(latency['p50'])} ms  p99 {ms_text(latency['p99'])} ms"),
        ],
        [Cell("weight ", "dim"), weight_bar(weight, 16), Cell(f" {weight['used']:,}/{weight['limit']:,}")],
    ]


class Card(Horizontal):
    """A number in large digits under a title."""

    def __init__(self, id: str, title: str = "", digits: bool = True) -> None:
        super().__init__(id=id)
        self.border_title = title
        self._digits = Digits("") if digits else None

    def compose(self) -> ComposeResult:
        if self._digits is not None:
            yield self._digits

    def show(self, title: str, texts: Sequence[str], note: str = "", style: str = "") -> None:
        """The first of these texts that has room; none: a dash."""
        assert self._digits is not None
        self.border_title, self.border_subtitle = title, note or None
        room = self.content_size.width or 22
        fitting = (text for text in texts if sum(1 if letter in ",." else 3 for letter in text) <= room)
        self._digits.update(next(fitting, "-"))
        self._digits.set_classes(style)


class SymbolTable(ScrollView, can_focus=True):
    """A line a symbol under a line of heads; only what can be seen is made, and only what has changed is drawn.

    textual's own DataTable took half a second for a second's news of 600 symbols.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown,space", "page(1)", show=False),
        Binding("home,g", "move(-1000000)", show=False),
        Binding("end,G", "move(1000000)", show=False),
        Binding("left", "scroll_columns(-1)", show=False),
        Binding("right", "scroll_columns(1)", show=False),
        Binding("enter", "app.explain", show=False),
    ]

    def __init__(self, cursor: Style) -> None:
        super().__init__()
        self.columns: list[Column] = []
        self.sort: str | None = None
        self.reverse = False
        self.pattern = ""
        self.only_decided = False
        self.order: list[Row] = []
        """The rows that are shown, in their order."""
        self.selected: str | None = None
        self.skipped = 0
        """How many columns after the first are scrolled away to the left."""
        self._fitting = 0
        self._cursor = cursor
        self._rows: dict[str, Row] = {}
        self._cells: dict[int, tuple[str, tuple[Cell, ...]]] = {}
        """What was drawn last: line → symbol and its cells."""

    @property
    def chosen_row(self) -> Row | None:
        return self.order[self._place()] if self.order else None

    def _place(self) -> int:
        """Of the chosen symbol; the first line where it is not shown."""
        for place, row in enumerate(self.order):
            if row.symbol == self.selected:
                return place
        return 0

    def show(self, rows: dict[str, Row]) -> None:
        """New rows: draw again what differs from what can be seen."""
        before = len(self.order), self.columns
        self._rows = rows
        self.columns, self._fitting = columns_for(self._room(), rows)
        sort = next((column for column in COLUMNS if column.name == self.sort), None)
        self.order = chosen(rows.values(), sort, self.reverse, self.pattern, self.only_decided)
        self.virtual_size = Size(self._room(), len(self.order) + 1)
        if before[1] != self.columns or before[0] != len(self.order):
            self._redraw()
            return
        changed = []
        for y in range(1, self.size.height):
            index = y - 1 + self.scroll_offset.y
            drawn = self._cells.get(index)
            if index >= len(self.order) or drawn is None:
                continue
            row = self.order[index]
            cells = cells_of(row, self._visible())
            if drawn[0] != row.symbol:  # the cursor may have moved with it, or away
                changed.append(Region(0, y, self.size.width, 1))
            elif drawn[1] != cells:
                differ = [place for place, pair in enumerate(zip(drawn[1], cells, strict=False)) if pair[0] != pair[1]]
                starts = self._starts()
                x, end = starts[differ[0]], starts[differ[-1] + 1]
                changed.append(Region(x, y, end - x, 1))
            self._cells[index] = row.symbol, cells
        if changed:
            self.refresh(*changed)

    def sort_by(self, name: str | None, reverse: bool = False) -> None:
        self.sort, self.reverse = name, reverse
        self.show(self._rows)
        self._redraw()

    def _redraw(self) -> None:
        self._cells.clear()
        self.refresh()

    def _room(self) -> int:
        return max(20, self.outer_size.width - 1)  # the scroll bar's column is kept free, so that nothing jumps

    def _visible(self) -> list[Column]:
        """The first columns stay; the others begin with those that are scrolled to, as many as fit as a whole."""
        room, found = self._room(), []
        for column in [*self.columns[:FIXED], *self.columns[FIXED + self.skipped :]]:
            room -= column.width + 1
            if room < -1:
                break
            found.append(column)
        return found

    def _starts(self) -> list[int]:
        starts = [0]
        for column in self._visible():
            starts.append(starts[-1] + column.width + 1)
        return starts

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._head(width)
        index = y - 1 + self.scroll_offset.y
        if index >= len(self.order):
            empty = index == 0 and bool(self._rows)
            said = " nothing matches; Esc shows all" if empty else ""
            return Strip([Segment(said, self.rich_style + _style("dim"))]).adjust_cell_length(width, self.rich_style)
        row = self.order[index]
        cells = self._cells.get(index)
        if cells is None or cells[0] != row.symbol:
            cells = self._cells[index] = row.symbol, cells_of(row, self._visible())
        base = self._cursor if index == self._place() else self.rich_style
        segments = [Segment(cell.text + " ", base + _style(cell.style)) for cell in cells[1]]
        return Strip(segments).adjust_cell_length(width, base).crop(0, width)

    def _head(self, width: int) -> Strip:
        sort = next((column for column in self.columns if column.name == self.sort), None)
        descending = sort is not None and sort.descending != self.reverse
        base = self.rich_style + _style("dim")
        segments = [
            Segment(cell.text + " ", base + Style(bold=True)) for cell in heads(self._visible(), sort, descending)
        ]
        strip = Strip(segments).adjust_cell_length(width, base).crop(0, width)
        if len(self._visible()) + self.skipped < len(self.columns):
            strip = Strip([*strip.crop(0, width - 1), Segment("›", base)])
        return strip

    def on_resize(self) -> None:
        self.show(self._rows)
        self._redraw()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._redraw()

    def action_move(self, by: int) -> None:
        if not self.order:
            return
        place = min(max(self._place() + by, 0), len(self.order) - 1)
        self.selected = self.order[place].symbol
        rows = self.size.height - 1
        top = self.scroll_offset.y
        if place < top:
            self.scroll_to(y=place, animate=False)
        elif place >= top + rows:
            self.scroll_to(y=place - rows + 1, animate=False)
        self._redraw()

    def action_page(self, pages: int) -> None:
        self.action_move(pages * max(1, self.size.height - 2))

    def action_scroll_columns(self, by: int) -> None:
        most = max(0, len(self.columns) - self._fitting)
        self.skipped = min(max(self.skipped + by, 0), most)
        self._redraw()

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            starts = self._starts()
            for column, start, end in zip(self._visible(), starts, starts[1:], strict=False):
                if start <= event.x < end:
                    self.sort_by(column.name, self.sort == column.name and not self.reverse)
        elif (index := event.y - 1 + self.scroll_offset.y) < len(self.order):
            self.selected = self.order[index].symbol
            self._redraw()


class Page(ModalScreen[None]):
    """A text over the table, until Esc."""

    CSS = """
    Page { align: center middle; background: $background 60%; }
    Page VerticalScroll { width: auto; max-width: 96%; height: auto; max-height: 92%; border: round $primary;
                          padding: 1 2; background: $panel; border-title-color: $primary; }
    Page Static { width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss", "close")]

    def __init__(self, title: str, text: Text) -> None:
        super().__init__()
        self._title = title
        self._static = Static(text)

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title, box.border_subtitle = self._title, "Esc closes"
            yield self._static

    def fill(self, text: Text) -> None:
        self._static.update(text)
