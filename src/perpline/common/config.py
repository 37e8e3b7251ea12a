"""Settings: what a person may change, from perpline.toml, PERPLINE_ environment variables and options, checked once.

Plain pydantic and tomllib. pydantic-settings would merge the sources too, but forgets which one a value came from, and
`config show` and every error text name it.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from perpline.common.errors import NeedsPerson

PREFIX = "PERPLINE_"

BINANCE_URLS: dict[str, tuple[str, str]] = {
    "mainnet": ("wss://fstream.binance.com", "https://fapi.binance.com"),
    "testnet": ("wss://fstream.binancefuture.com", "https://demo-fapi.binance.com"),
}
"""WebSocket and REST base URL by network (binance.md 1.1)."""


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _shard(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}/[1-9][0-9]{0,3}", text):
        raise ValueError("must be which of how many, as 2/3")
    return text


OptionalPath = Annotated[Path | None, BeforeValidator(_none)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Megabytes = Annotated[int, Field(ge=1, le=1_000_000)]


class Settings(BaseModel):
    """Every setting, checked. Made by `load_settings`, which knows the defaults that depend on the surroundings.

    Durations are seconds of market time where the exchange's clock matters (close_deadline_s, decide_within_s), of wall
    time elsewhere. Relative paths are relative to the working directory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    network: Annotated[Literal["mainnet", "testnet", "custom"], BeforeValidator(_lower)] = "mainnet"
    """Sets both URLs below; `custom` (the simulated exchange, a proxy) wants both given."""
    binance_futures_ws_url: str
    """Base URL of the streams, without a route; by default the network's."""
    binance_futures_rest_url: str
    """Base URL of REST; by default the network's."""

    symbols: str | tuple[str, ...] = "top:30"
    """A list, or "top:N": the N TRADING USDT perpetuals with the largest quote volume of 24 hours."""
    exclude: tuple[str, ...] = ()
    """Never followed, also when within the top N."""

    max_streams_per_connection: int = Field(200, ge=1, le=1024)
    """Above it a route gets one connection more. The exchange's own limit is 1024."""
    first_data_deadline_s: Seconds = 10.0
    """A stream that delivered nothing so long after its subscription is named in a warning and subscribed again."""
    silence_limit_s: Seconds = 15.0
    """A connection without any data for so long is lost. Short, for each market connection carries markPrice@1s, and
    fifteen missing in a row are no accident."""

    connection_max_age_s: Seconds = 82_800.0
    """A market connection is replaced, without a gap, when it is between nine and ten tenths as old as this: before the
    exchange cuts it, after 24 hours."""
    lanes: int = Field(1, ge=1, le=2)
    """Connections that carry the same streams. With 2 the first arrival wins and the loss of either loses nothing, for
    twice the connections and bandwidth, and nearly twice the processor time."""

    close_deadline_s: float = Field(3.0, gt=0, le=60)
    """A close that has not come so long after T is fetched over REST. The closing frame is often up to 2 s late."""
    decide_within_s: float = Field(30.0, gt=0, le=60)
    """A close known later than T plus this is recorded as skipped_missed instead of being decided."""
    gap_repair: Annotated[Literal["retrain", "live"], BeforeValidator(_lower)] = "retrain"
    """Whether holes outside the windows in use wait for `train` or `backfill`, or are fetched at once."""
    book_minutes: bool = True
    """Whether each minute's best bids and asks are summed up in the table book_minutes, for which every single book
    ticker is decoded. Without it only the newest of each symbol is, when it is read, and a core hears about five
    times as many; models with columns of group M are refused then."""
    price_klines: bool = True
    """Whether mark, index and premium klines are polled."""
    rest_weight_share: float = Field(0.8, ge=0.05, le=1)
    """How much of the exchange's request weight a minute perpline allows itself, all its processes together."""
    rest_address: str = Field("", pattern=r"^[A-Za-z0-9_.:-]{0,64}$")
    """Names the internet address that requests leave by. Processes with the same name share one weight budget, through
    Redis or the database they have in common; machines with addresses of their own each need a name."""

    data_dir: Path
    """Where the database and the malformed frames go by default: $XDG_DATA_HOME/perpline."""
    database_url: SecretStr
    """Where the tables are: sqlite:///relative.db, sqlite:////absolute.db or postgresql://user:password@host/database;
    by default perpline.db in data_dir."""
    redis_url: SecretStr = SecretStr("memory://")
    """The bus: memory:// (inside the process) or redis://…"""
    buffer_batch_rows: int = Field(500, ge=1, le=100_000)
    """A table's rows are written as soon as so many wait."""
    buffer_max_age_s: Seconds = 5.0
    """Rows are written at the latest at the first look (every 5 s) after they have waited so long."""
    buffer_max_rows: int = Field(100_000, ge=1, le=10_000_000)
    """Rows a table may have waiting in memory while neither database nor spool take any; beyond it the oldest are
    dropped, and said to be."""
    spool_mb: Megabytes = 1024
    """While the database is away its rows and decisions go to files in data_dir, as many as this. When they are full
    the oldest candles are dropped first, which can be fetched again, then other rows, and never decisions."""

    retention_days: int = Field(0, ge=0, le=100_000)
    """Whole UTC days before the present one that stay in the large tables; each night what is older is written to
    archive_dir and dropped. At least 10, for the longest feature looks back on a week; 0 keeps everything for ever."""
    archive_dir: Path
    """Where `perpline archive` writes its Parquet files: archive in data_dir by default."""
    disk_low_mb: Megabytes = 5_000
    """Less free than this, and less than a tenth of the disk, is an alarm."""
    disk_low_days: float = Field(3.0, ge=0, le=365)
    """At the rate of the last hours the disk would be full in fewer days: an alarm. 0 for never."""

    models_dir: Path
    """Where models are, a folder each: models in data_dir by default."""
    parity_at: Annotated[str, BeforeValidator(_lower), Field(pattern=r"^(off|([01]\d|2[0-3]):[0-5]\d)$")] = "off"
    """When, UTC, the predictions of the day before are computed again and compared (`perpline parity`), as "03:30"."""

    binance_api_key: SecretStr = SecretStr("")
    """The account's API key, for live trading. Better in api_key_file; never in perpline.toml."""
    binance_api_secret: SecretStr = SecretStr("")
    """The secret of an HMAC key."""
    api_key_file: OptionalPath = None
    """A file of mode 0600 with the key and its secret, or with the key and an Ed25519 private key (docs/trading.md).
    By default the systemd credential `perpline-api-key`, where there is one."""
    order_transport: Annotated[Literal["socket", "rest"], BeforeValidator(_lower)] = "socket"
    """Whether orders go over the order WebSocket API, with REST when it is away, or over REST alone."""
    paper_equity_usdt: float = Field(10_000.0, gt=0, le=1e12)
    """What the paper account begins with, once."""
    paper_fee_bps: float = Field(5.0, ge=0, le=100)
    """Fee of a paper fill, basis points of its notional."""
    sizing: Annotated[Literal["notional", "equity", "volatility"], BeforeValidator(_lower)] = "notional"
    """How large a position is: size_usdt, size_pct of the equity, or by risk_pct and the symbol's own volatility."""
    size_usdt: float = Field(100.0, gt=0, le=1e9)
    """Notional of a position with sizing = notional."""
    size_pct: float = Field(2.0, gt=0, le=1000)
    """Notional of a position in percent of the equity with sizing = equity."""
    risk_pct: float = Field(0.25, gt=0, le=10)
    """With sizing = volatility: what one standard deviation of the symbol's price (of the last 240 minutes, over the
    time that the position has) moves the position by, in percent of the equity. A calm symbol gets a larger one."""
    max_positions: int = Field(10, ge=1, le=1000)
    """Open at once, of one account."""
    max_symbol_usdt: float = Field(1_000.0, gt=0, le=1e9)
    """Most notional of one symbol."""
    max_total_usdt: float = Field(5_000.0, gt=0, le=1e10)
    """Most notional of all symbols together."""
    daily_loss_limit_pct: float = Field(3.0, gt=0, le=100)
    """No entries until midnight UTC once the day has lost so much of the equity it began with."""
    max_drawdown_pct: float = Field(10.0, gt=0, le=100)
    """No entries once the equity is so far below its highest, until a person sets the mode again."""
    stop_cooldown_min: int = Field(30, ge=0, le=10_080)
    """Minutes without an entry in a symbol after its stop was hit."""
    max_slippage_bps: float = Field(8.0, gt=0, le=1000)
    """No entry where the book ticker's estimate costs more."""
    min_liquidation_distance_pct: float = Field(10.0, gt=0, lt=100)
    """No entry whose liquidation price would lie nearer to the mark price, and none where it lies before the stop."""
    leverage: int = Field(3, ge=1, le=125)
    """Set for each symbol before its first live order, with isolated margin. More than 3 must be asked for, here; then
    `perpline doctor`, `perpline plan` and the log of each start say so."""
    trailing_stop_pct: float = Field(0.0, ge=0, lt=100)
    """The stop follows the best mark price at this distance; 0 for none."""
    break_even_pct: float = Field(0.0, ge=0, lt=100)
    """Once the position is so far in profit the stop moves to the entry price; 0 for never."""
    protective_stop_factor: float = Field(1.5, gt=1, le=10)
    """The stop that rests at the exchange is this many times as far from the entry as ours."""
    unknown_positions: Annotated[Literal["adopt", "leave"], BeforeValidator(_lower)] = "leave"
    """A position that perpline did not open is given a stop under the rules, or left alone. It is told either way."""
    reconcile_every_s: Seconds = 180.0
    """How often account, positions, orders and stops are compared with the exchange's."""
    naked_alarm_s: Seconds = 3.0
    """A live position without a confirmed stop at the exchange for so long is an alarm."""

    record: OptionalPath = None
    """Raw frames are also written here (zstd, rotated): at most record_files files of record_file_mb each."""
    record_file_mb: Megabytes = 100
    """A recording goes on in the next file once one is so large, compressed."""
    record_files: int = Field(20, ge=1, le=100_000)
    """Of more files than this the oldest is deleted."""
    malformed_file: OptionalPath
    """Frames that could not be decoded are kept here, until it has malformed_file_mb. "none" keeps none."""
    malformed_file_mb: Megabytes = 16
    """What comes when the file is full is only counted."""

    role: Annotated[Literal["all", "collector", "inference"], BeforeValidator(_lower)] = "all"
    """What this process does: everything; hear the market and send features; or decide what collectors send. The parts
    of one slot share a Redis and a PostgreSQL (docs/scaling.md). Trading belongs to the role `all`."""
    shard: Annotated[str, AfterValidator(_shard)] = "1/1"
    """With role = collector: which of how many, as "2/3". All collectors of a slot must agree on how many."""
    group: str = Field("inf", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    """With role = inference: workers of one group share the work; a slot wants one group only."""
    slot: str = Field("champion", pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    """Whose decisions these are: part of the key of `signals` and of every name on the bus."""
    status_port: int = Field(9720, ge=0, le=65_535)
    """Loopback port of the worker's endpoint; 0 takes a free one."""
    dashboard_port: int = Field(9721, ge=0, le=65_535)
    """Where `perpline dashboard` listens; 0 takes a free one."""
    dashboard_host: str = Field("127.0.0.1", pattern=r"^[A-Za-z0-9_.:-]{1,253}$")
    """On which address, or under which name. Others than this machine's own want --allow-remote and TLS."""
    dashboard_origin: str = ""
    """Where people reach the dashboard through a proxy that ends TLS, as https://perpline.example.com. Requests under
    that name and from pages of that origin are then ours too."""
    alert_urls: tuple[SecretStr, ...] = ()
    """Who is told of alarms by `perpline alerts run`: addresses as apprise writes them, mailto://… or discord://…, as a
    list; in the environment variable with spaces between them. They hold secrets and are never shown."""
    runbook_url: str = ""
    """Where the runbooks are read on a phone: the address that alarms put before the name of their page, as
    https://example.com/runbooks/, or with {name} where the name belongs, as …/runbooks/{name}.html. Empty: alarms name
    the path in the repository."""
    alert_remind_h: float = Field(6.0, gt=0, le=8_760)
    """An alarm that still stands is told again after so many hours."""
    alert_every_s: float = Field(5.0, ge=0.05, le=300)
    """How often `perpline alerts run` looks."""
    alert_patience: float = Field(1.0, ge=0, le=100)
    """What each alarm waits before it is raised and before it is over (`perpline alerts rules`), multiplied by this."""
    alert_workers: int = Field(1, ge=1, le=32)
    """How many workers are meant to run with this data folder; 2 where one stands by."""
    alert_weight_pct: float = Field(80.0, gt=0, le=100)
    """More of the exchange's request weight a minute than this is an alarm."""
    alert_close_to_signal_ms: float = Field(500.0, gt=0, le=60_000)
    """Signals that take longer than this from the last closing frame to the commit, wall time, are an alarm."""
    alert_clock_offset_ms: float = Field(500.0, gt=0, le=60_000)
    """A host's clock that is further from the exchange's than this is an alarm."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    """The least level that is logged, to stderr."""
    log_format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = "auto"
    """`auto`: console on a terminal, JSON lines elsewhere."""
    clock_speed: float = Field(1.0, gt=0, le=1000)
    """How many times as fast as the wall market time runs. Only for the simulated exchange, run at the same speed."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def top(self) -> int | None:
        """N of "top:N", None where the symbols are listed."""
        return int(self.symbols[4:]) if isinstance(self.symbols, str) else None

    @property
    def shard_numbers(self) -> tuple[int, int]:
        """(i, n) of "i/n"."""
        number, _, shards = self.shard.partition("/")
        return int(number), int(shards)

    @property
    def parity_at_ms(self) -> int | None:
        """The milliseconds from midnight, None where it is off."""
        hour, _, minute = self.parity_at.partition(":")
        return (int(hour) * 60 + int(minute)) * 60_000 if minute else None

    def masked(self) -> dict[str, dict[str, object]]:
        """{name: {"value", "source"}} for people and logs: plain JSON values, passwords replaced by ***.

        The source is "default", "default of …", the file's name, the environment variable or "option".
        """
        return {
            name: {"value": _shown(name, getattr(self, name)), "source": self._sources.get(name, "default")}
            for name in type(self).model_fields
        }

    @field_validator("symbols", "exclude", mode="before")
    @classmethod
    def _check_symbols(cls, value: object, info: Any) -> object:
        if isinstance(value, str):
            text = value.strip()
            if info.field_name == "symbols" and (top := re.fullmatch(r"(?i)top:\s*(\d{1,4})", text)):
                if int(top[1]) == 0:
                    raise ValueError("top:0 would follow nothing")
                return f"top:{int(top[1])}"
            value = [part for part in text.split(",") if part.strip()]
        if not isinstance(value, list | tuple) or not all(isinstance(symbol, str) for symbol in value):
            raise ValueError('a list of symbols like ["BTCUSDT", "ETHUSDT"] or "top:30" is expected')
        names = tuple(dict.fromkeys(symbol.strip().upper() for symbol in value))
        for name in names:
            # Symbols may hold letters of any script (binance.md 1.3), but nothing that would change a stream's name.
            if not re.fullmatch(r"\w{1,40}", name):
                raise ValueError(f"{name!r} is no symbol")
        if info.field_name == "symbols" and not names:
            raise ValueError("no symbol is named")
        return names

    @field_validator("binance_futures_ws_url", "binance_futures_rest_url")
    @classmethod
    def _check_url(cls, value: str, info: Any) -> str:
        schemes = ("ws", "wss") if info.field_name == "binance_futures_ws_url" else ("http", "https")
        _check_scheme(value, schemes, needs_host=True)
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr) -> SecretStr:
        _check_scheme(value.get_secret_value(), ("sqlite", "postgresql"))
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        _check_scheme(value.get_secret_value(), ("memory", "redis", "rediss", "unix"))
        return value

    @field_validator("dashboard_origin")
    @classmethod
    def _check_dashboard_origin(cls, value: str) -> str:
        if not value:
            return value
        _check_scheme(value, ("http", "https"), needs_host=True)
        origin = value.rstrip("/").lower()
        if not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+", origin):
            raise ValueError("an origin is expected: scheme, name and perhaps a port, as https://perpline.example.com")
        return origin

    @field_validator("runbook_url")
    @classmethod
    def _check_runbook_url(cls, value: str) -> str:
        if value:
            _check_scheme(value, ("http", "https"), needs_host=True)
        return value

    @field_validator("alert_urls", mode="before")
    @classmethod
    def _check_alert_urls(cls, value: object) -> object:
        urls = value.split() if isinstance(value, str) else value
        if not isinstance(urls, list | tuple) or not all(isinstance(url, str | SecretStr) for url in urls):
            raise ValueError('a list of addresses like ["mailto://user:password@example.com"] is expected')
        for number, url in enumerate(urls, 1):
            text = url.get_secret_value() if isinstance(url, SecretStr) else url
            if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", text):
                raise ValueError(f"number {number} is no address like mailto://… or discord://…")
        return urls

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        # Prices of one network with candles of another would be stored side by side and never told apart again.
        pair = (self.binance_futures_ws_url, self.binance_futures_rest_url)
        for network, known in BINANCE_URLS.items():
            if (pair[0] == known[0]) != (pair[1] == known[1]):
                raise ValueError(
                    f"binance_futures_ws_url and binance_futures_rest_url: one is {network}'s and the other is not; "
                    "set both, or only network"
                )
        if not isinstance(self.symbols, str) and set(self.symbols) <= set(self.exclude):
            raise ValueError("exclude: it holds every one of symbols")
        if self.clock_speed != 1 and pair in BINANCE_URLS.values():
            raise ValueError("clock_speed: only the simulated exchange runs at another speed than 1")
        number, shards = self.shard_numbers
        if number > shards:
            raise ValueError(f"shard: {self.shard} is none: of {shards} shards the last is {shards}/{shards}")
        if self.role != "collector" and self.shard != "1/1":
            raise ValueError(f"shard: {self.shard} means something with role = collector only, and this is {self.role}")
        if self.role != "all":
            if self.redis_url.get_secret_value().startswith("memory:"):
                raise ValueError(f"redis_url: role = {self.role} reaches others through Redis: name one, redis://…")
            if not self.database_url.get_secret_value().startswith("postgresql:"):
                raise ValueError(
                    f"database_url: role = {self.role} shares tables with other processes: name a PostgreSQL database, "
                    "postgresql://…"
                )
        if 0 < self.retention_days < 10:
            raise ValueError(f"retention_days: 0 (keep for ever) or at least 10, not {self.retention_days}")
        if self.decide_within_s <= self.close_deadline_s:
            raise ValueError(
                f"decide_within_s ({self.decide_within_s:g}) must be longer than close_deadline_s "
                f"({self.close_deadline_s:g}), or a close fetched over REST is always too late"
            )
        return self


def load_settings(config: Path | None, env: Mapping[str, str], overrides: Mapping[str, object]) -> Settings:
    """The settings: options before PERPLINE_ environment variables before the file before the defaults.

    The file is `config`, else $PERPLINE_CONFIG, else ./perpline.toml, else $XDG_CONFIG_HOME/perpline/perpline.toml;
    of the last two none need exist. In `overrides`, None means not given; an empty environment variable counts as not
    set. Raises NeedsPerson, with one line naming setting, source and what is expected, for an unknown name or a bad
    value; ValueError for an unknown name in `overrides`, which only our own code can cause.
    """
    known = Settings.model_fields
    file = _config_file(config, env)
    layers: list[dict[str, tuple[object, str]]] = [
        {} if file is None else _from_file(file),
        _from_environment(env),
        {name: (value, "option") for name, value in overrides.items() if value is not None},
    ]
    if unknown := sorted(layers[2].keys() - known.keys()):
        raise ValueError(f"no such setting: {', '.join(unknown)}")
    given = {name: entry for layer in layers for name, entry in layer.items()}
    values = {**_defaults(given, env), **given}
    try:
        settings = Settings.model_validate({name: _expanded(name, value, env) for name, (value, _) in values.items()})
    except ValidationError as error:
        raise NeedsPerson(_explain(error, values)) from None
    settings._sources = {name: source for name, (_, source) in values.items()}
    return settings


def _config_file(config: Path | None, env: Mapping[str, str]) -> Path | None:
    if config is not None:
        return config
    if named := env.get("PERPLINE_CONFIG"):
        return Path(named)
    return next((path for path in (Path("perpline.toml"), user_config_file(env)) if path.is_file()), None)


def user_config_file(env: Mapping[str, str]) -> Path:
    """The user's own settings file, which need not exist: $XDG_CONFIG_HOME/perpline/perpline.toml."""
    return _xdg(env, "XDG_CONFIG_HOME", ".config", own=True) / "perpline.toml"


def _from_file(path: Path) -> dict[str, tuple[object, str]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NeedsPerson(f"cannot read the settings file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise NeedsPerson(f"the settings file {path} is not UTF-8 text") from None
    except RecursionError:
        raise NeedsPerson(f"the settings file {path} is not TOML: nested too deep") from None
    except ValueError as error:  # also numbers with more digits than Python reads
        raise NeedsPerson(f"the settings file {path} is not TOML: {error}") from None
    names = list(Settings.model_fields)
    for key in content:
        if key not in names:
            raise NeedsPerson(f"unknown setting {key!r} in {path}: {_did_you_mean(key, names)}")
    return {key: (value, str(path)) for key, value in content.items()}


def _from_environment(env: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    variables = {PREFIX + name.upper(): name for name in Settings.model_fields}
    found: dict[str, tuple[object, str]] = {}
    for variable, value in env.items():
        # PERPLINE_TEST_… steer the tests and reach no setting.
        if not variable.startswith(PREFIX) or variable == "PERPLINE_CONFIG" or variable.startswith("PERPLINE_TEST_"):
            continue
        if variable not in variables:
            guess = _did_you_mean(variable.removeprefix(PREFIX).lower(), list(variables.values()), PREFIX)
            raise NeedsPerson(f"unknown environment variable {variable!r}: {guess}")
        if value.strip():
            found[variables[variable]] = (value, variable)
    return found


def _did_you_mean(name: str, names: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1)
    if not close:
        return "no setting has a name like it"
    return f"did you mean {(prefix + close[0].upper() if prefix else close[0])!r}?"


def _defaults(given: Mapping[str, tuple[object, str]], env: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    """The defaults that follow from other settings or from the surroundings."""
    data_dir: object = given["data_dir"][0] if "data_dir" in given else _xdg(env, "XDG_DATA_HOME", ".local/share", True)
    folder = _home_expanded(str(data_dir), env)
    defaults: dict[str, tuple[object, str]] = {
        "data_dir": (folder, "default"),
        # Three slashes and the path: an absolute one makes four, which every reader of such URLs takes for absolute.
        "database_url": (f"sqlite:///{folder / 'perpline.db'}", "default of data_dir"),
        "malformed_file": (folder / "malformed.frames", "default of data_dir"),
        "models_dir": (folder / "models", "default of data_dir"),
        "archive_dir": (folder / "archive", "default of data_dir"),
    }
    network = str(given["network"][0]).lower() if "network" in given else "mainnet"
    if network in BINANCE_URLS:
        ws_url, rest_url = BINANCE_URLS[network]
        defaults["binance_futures_ws_url"] = (ws_url, f"default of network {network}")
        defaults["binance_futures_rest_url"] = (rest_url, f"default of network {network}")
    return defaults


def state_folder(env: Mapping[str, str]) -> Path:
    """Where commands keep what they remember from run to run: $XDG_STATE_HOME/perpline."""
    return _xdg(env, "XDG_STATE_HOME", ".local/state", own=True)


def _xdg(env: Mapping[str, str], variable: str, fallback: str, own: bool = False) -> Path:
    """A base folder of the XDG specification, by which a relative value is ignored; with `own`, perpline's part."""
    base = Path(env.get(variable, ""))
    folder = base if base.is_absolute() else _home(env) / fallback
    return folder / "perpline" if own else folder


def _home(env: Mapping[str, str]) -> Path:
    if env.get("HOME"):
        return Path(env["HOME"])
    try:
        return Path.home()
    except RuntimeError:
        raise NeedsPerson("no home folder is known: set HOME, or data_dir and PERPLINE_CONFIG") from None


def _expanded(name: str, value: object, env: Mapping[str, str]) -> object:
    return _home_expanded(value, env) if name in _PATHS and isinstance(value, str) and _none(value) else value


_URLS = ("database_url", "redis_url")
_KEYS = ("binance_api_key", "binance_api_secret")
_PATHS = ("data_dir", "models_dir", "archive_dir", "record", "malformed_file", "api_key_file")


def _home_expanded(text: str, env: Mapping[str, str]) -> Path:
    return _home(env) / text[2:] if text.startswith("~/") else Path(text)


def _explain(error: ValidationError, values: Mapping[str, tuple[object, str]]) -> str:
    """One line about the first thing that is wrong; the others are found when it is mended."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = re.sub("^Value error, ", "", first["msg"])
    message = message.replace("Input should be", "must be", 1).replace("String should match pattern", "must match", 1)
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{name} is not set: with network = 'custom' both URLs must be given"
    value, source = values[name]
    # A URL may hold a password, and a broken one cannot be masked with certainty.
    shown = "" if name in (*_URLS, *_KEYS, "alert_urls") else f", not {value!r}"
    return f"{name} ({source}): {message}{shown}"


def _check_scheme(url: str, schemes: tuple[str, ...], needs_host: bool = False) -> None:
    expected = " or ".join(f"{scheme}://…" for scheme in schemes)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and "://" in url and (bool(parts.hostname) or not needs_host)
        _ = parts.port  # raises where it is no number
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"must be a URL {expected}")


def _shown(name: str, value: object) -> object:
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return masked_url(secret) if name in _URLS else "***" if secret else ""
    if isinstance(value, Path):
        return str(value)
    if name == "alert_urls" and isinstance(value, tuple):
        return [url.get_secret_value().split("://", 1)[0] + "://***" for url in value]
    return list(value) if isinstance(value, tuple) else value


def masked_url(url: str) -> str:
    """The URL with every password in it (before the @, or as a query parameter) replaced by ***."""
    # Up to the last @, so that a password with characters that should have been escaped is hidden as well.
    url = re.sub(r"(?<=://)([^:@/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&](?:password|passwd|pass|sslpassword|token)=)[^&#]*", r"\1***", url)
