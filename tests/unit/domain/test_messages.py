"""The contract with consumers: what is sent is what the types, the schemas and the page say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from perpline.domain.messages import MESSAGES, Close, Signal, json_schema, with_number
from perpline.domain.signal import Status
from running import command
from signalling import T0, decision, flat, published

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "consumers.md").read_text()


@pytest.mark.parametrize(
    "one", [decision("BTCUSDT"), flat("ÄUSDT", detail='a "quoted" word')], ids=lambda one: one.status
)
def test_a_signal_that_is_sent_has_every_field_of_its_schema_in_order_and_no_other(one: Any) -> None:
    payload = json.loads(published(one, seq=7).payload)

    assert list(payload) == json_schema("signal")["required"]
    assert list(payload)[:2] == ["v", "type"]
    assert (payload["seq"], payload["t_pub_us"], payload["sym"], payload["T"]) == (7, (T0 + 40) * 1000, one.symbol, T0)
    read = msgspec.json.decode(published(one, seq=7).payload, type=Signal)
    assert msgspec.to_builtins(read) == payload


def test_every_status_but_missed_is_named_in_the_schema() -> None:
    described = json_schema("signal")["properties"]["status"]["description"]

    assert [status for status in Status if not re.search(rf"\b{status}\b", described)] == [Status.SKIPPED_MISSED]


def test_a_reader_ignores_fields_it_does_not_know_and_refuses_a_version_it_does_not_know() -> None:
    payload = with_number(published(decision("BTCUSDT")).payload, "tomorrows", 1)

    assert msgspec.json.decode(payload, type=Signal).sym == "BTCUSDT"
    with pytest.raises(msgspec.ValidationError, match=r"\$\.v"):
        msgspec.json.decode(payload.replace('"v":1', '"v":2'), type=Signal)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_committed_schema_is_what_the_code_says(name: str) -> None:
    committed = (ROOT / "docs" / "schemas" / f"{name}.json").read_text()

    assert committed == command("schema", name).out, f"perpline schema {name} > docs/schemas/{name}.json"


@pytest.mark.parametrize("name", MESSAGES)
def test_a_schema_demands_every_field_and_refers_to_nothing_outside_itself(name: str) -> None:
    schema = json_schema(name)

    for each in [schema, *schema.get("$defs", {}).values()]:
        assert each["required"] == list(each["properties"])
        assert "additionalProperties" not in each
    assert schema["properties"]["type"]["enum"] == [name]
    names = set(references(schema))
    assert names == {f"#/$defs/{name}" for name in schema.get("$defs", {})}


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_all_schemas_are_printed_by_name_as_one_line_if_wanted() -> None:
    done = command("schema", "--json")

    assert json.loads(done.out) == {name: json_schema(name) for name in MESSAGES}
    assert done.out.count("\n") == 1
    assert command("schema", "candle").code == 2


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: kind.__name__)
def test_version_and_type_come_first(kind: type[Struct]) -> None:
    assert kind.__struct_fields__[:2] == ("v", "type")


def test_the_example_of_the_page_is_a_signal() -> None:
    start = PAGE.index('{"v":1')
    example = re.sub(r"\n\s+", "", PAGE[start : PAGE.index("\n\n", start)])

    assert msgspec.json.decode(example, type=Signal).seq == 48_211
    assert list(json.loads(example)) == json_schema("signal")["required"]


def test_the_page_holds_the_client_word_for_word() -> None:
    [client] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

    assert client == (ROOT / "docs" / "examples" / "consumer.py").read_text()


@given(
    st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False) | st.text() | st.lists(st.text())),
    st.integers(0, 2**60),
)
def test_a_number_is_added_as_the_last_member_and_changes_nothing_else(members: dict[str, Any], number: int) -> None:
    payload = msgspec.json.encode({name: value for name, value in members.items() if name != "seq"}).decode()

    longer = with_number(payload, "seq", number)

    assert list(json.loads(longer).items()) == [*json.loads(payload).items(), ("seq", number)]


@pytest.mark.parametrize("payload", ["", "[1]", "null", "{} "])
def test_a_payload_that_cannot_be_an_object_gets_no_number(payload: str) -> None:
    with pytest.raises(ValueError, match="JSON object"):
        with_number(payload, "seq", 1)


def test_the_close_of_a_minute_tells_unknown_durations_as_null() -> None:
    payload = (
        '{"v":1,"type":"close","slot":"champion","T":60000,"n":2,"signals":0,"skipped":0,"statuses":{"flat":2},'
        '"lat_ms":{"feat":0.2,"pred":null,"db":null,"pub":null},"model":"m","t_pub_us":1}'
    )

    assert msgspec.json.decode(payload, type=Close).lat_ms.db is None
    assert list(json.loads(payload)) == json_schema("close")["required"]
