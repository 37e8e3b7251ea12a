from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpline.common.config import Settings, load_settings, masked_url
from perpline.common.errors import NeedsPerson

SIMULATED = {
    "network": "custom",
    "binance_futures_ws_url": "ws://127.0.0.1:9",
    "binance_futures_rest_url": "http://127.0.0.1:9",
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(env: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    return load_settings(None, {"HOME": "/home/someone", **(env or {})}, overrides)


def complaint(env: Mapping[str, str] | None = None, **overrides: object) -> str:
    with pytest.raises(NeedsPerson) as caught:
        load(env, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_any_source_the_mainnet_and_the_thirty_largest_symbols_are_followed() -> None:
    settings = load()

    assert settings.binance_futures_ws_url == "wss://fstream.binance.com"
    assert settings.binance_futures_rest_url == "https://fapi.binance.com"
    assert settings.top == 30
    assert settings.database_url.get_secret_value() == "sqlite:////home/someone/.local/share/perpline/perpline.db"
    assert settings.redis_url.get_secret_value() == "memory://"
    assert {entry["source"] for entry in settings.masked().values()} == {
        "default",
        "default of data_dir",
        "default of network mainnet",
    }


def test_the_testnet_by_name_sets_both_urls() -> None:
    settings = load(network="testnet")

    assert settings.binance_futures_ws_url == "wss://fstream.binancefuture.com"
    assert settings.binance_futures_rest_url == "https://demo-fapi.binance.com"


def test_an_option_beats_the_environment_which_beats_the_file_and_each_source_is_told(tmp_path: Path) -> None:
    file = tmp_path / "perpline.toml"
    file.write_text('status_port = 1\nsymbols = ["BTCUSDT"]\nclose_deadline_s = 2\n')

    settings = load({"PERPLINE_STATUS_PORT": "2", "PERPLINE_SYMBOLS": "ethusdt, SOLUSDT"}, status_port=3)

    assert settings.status_port == 3
    assert settings.symbols == ("ETHUSDT", "SOLUSDT")
    assert settings.close_deadline_s == 2.0
    masked = settings.masked()
    assert masked["status_port"] == {"value": 3, "source": "option"}
    assert masked["symbols"] == {"value": ["ETHUSDT", "SOLUSDT"], "source": "PERPLINE_SYMBOLS"}
    assert masked["close_deadline_s"] == {"value": 2.0, "source": "perpline.toml"}


def test_an_option_that_was_not_given_and_an_empty_variable_change_nothing() -> None:
    assert load({"PERPLINE_STATUS_PORT": " "}, status_port=None).status_port == 9720


def test_the_file_is_the_named_one_then_the_environments_then_the_folders_then_the_users(tmp_path: Path) -> None:
    def write(path: Path, port: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"status_port = {port}\n")
        return path

    users = write(tmp_path / "xdg" / "perpline" / "perpline.toml", 1)
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(users.parent.parent)}
    ports = [load(env).status_port]
    write(Path("perpline.toml"), 2)
    ports.append(load(env).status_port)
    env["PERPLINE_CONFIG"] = str(write(tmp_path / "b.toml", 3))
    ports.append(load(env).status_port)
    ports.append(load_settings(write(tmp_path / "a.toml", 4), env, {}).status_port)

    assert ports == [1, 2, 3, 4]


def test_a_relative_xdg_folder_is_ignored_as_its_specification_says() -> None:
    assert load({"XDG_DATA_HOME": "data"}).data_dir == Path("/home/someone/.local/share/perpline")


def test_an_unknown_setting_in_the_file_is_refused_with_the_likely_name() -> None:
    Path("perpline.toml").write_text('symbls = "top:5"\n')

    assert complaint() == "unknown setting 'symbls' in perpline.toml: did you mean 'symbols'?"


def test_an_unknown_variable_is_refused_with_the_likely_name() -> None:
    assert complaint({"PERPLINE_SYMBLS": "x"}) == (
        "unknown environment variable 'PERPLINE_SYMBLS': did you mean 'PERPLINE_SYMBOLS'?"
    )


def test_a_name_like_no_setting_is_refused_without_a_guess() -> None:
    assert complaint({"PERPLINE_QQQQQQ": "x"}) == (
        "unknown environment variable 'PERPLINE_QQQQQQ': no setting has a name like it"
    )


def test_variables_of_the_tests_and_of_others_are_left_alone() -> None:
    assert load({"PERPLINE_TEST_SEED": "1", "PERPLINE_CONFIG": "", "PATH": "/bin"}).top == 30


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("status_port", 70000, "status_port (option): must be less than or equal to 65535, not 70000"),
        ("max_streams_per_connection", 1025, "less than or equal to 1024"),
        ("max_streams_per_connection", 0, "greater than or equal to 1"),
        ("close_deadline_s", float("nan"), "finite"),
        ("close_deadline_s", "soon", "valid number"),
        ("gap_repair", "never", "must be 'retrain' or 'live', not 'never'"),
        ("network", "mars", "must be 'mainnet', 'testnet' or 'custom', not 'mars'"),
        ("symbols", "top:0", "follow nothing"),
        ("symbols", [], "no symbol is named"),
        ("symbols", ["BTC/USDT"], "'BTC/USDT' is no symbol"),
        ("symbols", 30, '"top:30" is expected'),
        ("exclude", "top:3", "'TOP:3' is no symbol"),
        ("database_url", "mysql://u:hunter2@h/db", "sqlite://… or postgresql://…"),
        ("redis_url", "localhost:6379", "memory://… or redis://…"),
        ("binance_futures_ws_url", "https://fstream.binance.com", "ws://… or wss://…"),
        ("binance_futures_rest_url", "https://", "http://… or https://…"),
        ("slot", "Champion!", "slot (option)"),
        ("log_level", "loud", "must be 'debug'"),
        ("price_klines", "perhaps", "price_klines (option)"),
        ("decide_within_s", 2.0, "must be longer than close_deadline_s"),
        ("clock_speed", 60, "only the simulated exchange"),
        ("binance_futures_ws_url", "wss://fstream.binancefuture.com", "set both, or only network"),
        ("network", "custom", "binance_futures_ws_url is not set"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_what_is_expected(
    name: str, value: object, expected: str
) -> None:
    text = complaint(**{name: value})

    assert expected in text
    assert name in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"status_port = \n", "perpline.toml is not TOML: Invalid value (at line 1, column 15)"),
        (b"\xff\xfe", "perpline.toml is not UTF-8 text"),
        (b"[symbols]\nbtc = 1\n", "symbols (perpline.toml)"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(content: bytes, expected: str) -> None:
    Path("perpline.toml").write_bytes(content)

    assert expected in complaint()


def test_a_file_that_was_named_and_is_not_there_is_refused() -> None:
    assert complaint({"PERPLINE_CONFIG": "absent.toml"}) == (
        "cannot read the settings file absent.toml: No such file or directory"
    )


def test_excluding_every_symbol_is_refused() -> None:
    assert complaint(symbols="BTCUSDT", exclude="btcusdt,ETHUSDT") == "exclude: it holds every one of symbols"


def test_the_simulated_exchange_may_run_at_another_speed() -> None:
    assert load(**SIMULATED, clock_speed="60").clock_speed == 60.0


def test_the_database_follows_the_data_folder_and_a_home_sign_is_understood() -> None:
    settings = load({"PERPLINE_DATA_DIR": "~/market"})

    assert settings.data_dir == Path("/home/someone/market")
    assert settings.database_url.get_secret_value() == "sqlite:////home/someone/market/perpline.db"


def test_none_turns_an_optional_file_off() -> None:
    assert load(malformed_file="none").malformed_file is None


def test_secrets_are_masked_where_settings_are_shown_or_printed() -> None:
    settings = load({"PERPLINE_DATABASE_URL": "postgresql://me:hunter2@db:5432/perpline"})

    assert settings.masked()["database_url"]["value"] == "postgresql://me:***@db:5432/perpline"
    assert "hunter2" not in repr(settings)


@given(st.text(st.characters(exclude_characters="@", min_codepoint=33, max_codepoint=126), min_size=4))
def test_no_password_survives_masking(password: str) -> None:
    secret = f"S{password}T"

    assert secret not in masked_url(f"redis://:{secret}@host:6379/0")
    assert masked_url(f"postgresql://me:{secret}@host/db").startswith("postgresql://me:***@host")


def test_an_unknown_option_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="no such setting: colour"):
        load(colour="red")
