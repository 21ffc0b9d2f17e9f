import contextlib
import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin.wire.json import (
    MAX_ITEMS,
    MAX_MEMBERS,
    MAX_NESTING,
    MAX_SCANNED_BYTES,
    MAX_SCANNED_MARKS,
    MAX_SCANNED_MEMBERS,
    Members,
    decode_members,
    decode_text,
    encode_json,
    find_string,
    last_items,
    put_model,
    put_string,
    read_object,
)

BOM = b"\xef\xbb\xbf"
DEPTH = 200_000


def values(text: bytes) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in decode_members(text).items()}


def loads_exactly(text: bytes) -> Any:
    """Return what json makes of *text*, with numbers as they are written and nested members in their order."""
    kind, members = json.loads(
        text.decode("utf-8-sig"),
        parse_int=lambda number: ("number", number),
        parse_float=lambda number: ("number", number),
        parse_constant=lambda number: ("number", number),
        object_pairs_hook=lambda pairs: ("object", pairs),
    )
    if kind != "object":
        raise ValueError("not an object")
    return dict(members)


# Generated JSON is put together from texts, because only so the text of each value is known.

spaces = st.text(" \t\n\r", max_size=2)
# What json.dumps would not write itself; msgspec refuses the last four and leaves them to the scanner.
odd_scalars = st.sampled_from(
    [
        *("-0", "1E5", "1e400", "0.1000000000000000055", "1" * 5000, '"mod\\u0065l"', '"\\/"'),
        *('"\\ud800"', "NaN", "Infinity", "-Infinity"),
    ]
)
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
names = st.sampled_from(["model", "models", "messages", "", '"model":', "{", "ключ"]) | st.text(max_size=5)


@st.composite
def strings(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    return json.dumps(draw(texts), ensure_ascii=draw(st.booleans()))


@st.composite
def dumped(draw: st.DrawFn) -> str:
    """A value as json.dumps writes it: compact or indented, escaped or not."""
    scalars = st.none() | st.integers() | st.floats() | st.text(max_size=8)
    nested = st.recursive(
        scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3), max_leaves=4
    )
    layout: dict[str, Any] = draw(st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}]))
    return json.dumps(draw(nested), ensure_ascii=draw(st.booleans()), **layout)


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[str]) -> str:
    space = draw(spaces)
    return "[" + ",".join(space + item + space for item in draw(st.lists(items, max_size=3))) + "]"


@st.composite
def members_of(draw: st.DrawFn, items: st.SearchStrategy[str], min_size: int = 0) -> list[tuple[str, str]]:
    return draw(st.lists(st.tuples(strings(names), items), min_size=min_size, max_size=5))


@st.composite
def objects(draw: st.DrawFn, items: st.SearchStrategy[str]) -> str:
    return write_object(draw(members_of(items)), draw(spaces))


def write_object(members: list[tuple[str, str]], space: str) -> str:
    return "{" + ",".join(space + name + space + ":" + space + value + space for name, value in members) + "}"


json_values = st.recursive(
    strings(st.text(max_size=8)) | numbers | odd_scalars | st.sampled_from(["true", "false", "null"]),
    lambda items: arrays(items) | objects(items),
    max_leaves=4,
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    members = draw(members_of(json_values | dumped(), min_size=1))
    return BOM * draw(st.booleans()) + write_object(members, draw(spaces)).encode() + draw(spaces).encode()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(documents()))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(body) - 1))
        change = draw(st.sampled_from(["flip", "flip inside a token", "remove", "insert", "cut", "repeat"]))
        if change.startswith("flip"):
            inside = [i for i, byte in enumerate(body) if chr(byte).isalnum()] if "inside" in change else []
            body[draw(st.sampled_from(inside)) if inside else at] ^= draw(st.integers(1, 255))
        elif change == "remove":
            del body[at : at + draw(st.integers(1, 4))]
        elif change == "insert":
            body[at:at] = draw(
                st.binary(max_size=3) | st.sampled_from([b" ", b",", b'"', b"}", b"1", b"NaN", b"\\u00"])
            )
        elif change == "cut":
            del body[at + 1 :]
        else:
            body[at:at] = body
    return bytes(body or b"{")


@given(members_of(json_values | dumped()), spaces)
@settings(max_examples=100, deadline=None)
def test_only_the_model_changes_and_every_other_value_keeps_its_bytes(
    members: list[tuple[str, str]], space: str
) -> None:
    source = space.encode() + write_object(members, space).encode()
    decoded = decode_members(source)
    assert {name: bytes(value) for name, value in decoded.items()} == {
        json.loads(name): value.encode() for name, value in members
    }
    before = {name: bytes(value) for name, value in decoded.items()}
    result = put_model(decoded, "claude")
    assert loads_exactly(result) == loads_exactly(source) | {"model": "claude"}
    assert values(result) == before | {"model": b'"claude"'}


binary_strings = st.tuples(st.binary(max_size=2), st.binary(max_size=4), st.sampled_from([b"1", b"NaN"])).map(
    b'{"%b":"%b","b":%b}'.__mod__
)


@given(mutated() | binary_strings | st.binary())
@settings(max_examples=300, deadline=None)
def test_a_broken_body_raises_nothing_but_value_error_and_what_is_taken_survives_a_rewrite(body: bytes) -> None:
    try:
        members = values(body)
    except ValueError:
        return
    assert values(encode_json(decode_members(body))) == members


@given(documents() | mutated())
@settings(max_examples=200, deadline=None)
def test_what_json_takes_as_an_object_is_taken(body: bytes) -> None:
    try:
        expected = loads_exactly(body)
        names = {name.encode() for name in expected}  # a lone surrogate can't be
    except ValueError:
        return
    assert {name.encode() for name in decode_members(body)} == names


@given(documents() | mutated() | st.binary())
@settings(max_examples=200, deadline=None)
def test_read_object_gives_no_members_where_there_is_no_object(body: bytes) -> None:
    try:
        expected = values(body)
    except ValueError:
        expected = {}
    assert {name: bytes(value) for name, value in read_object(body).items()} == expected


@pytest.mark.parametrize("body", [b"", b"[DONE]", b"x", b'"{"', b" [{}]", b"\xef\xbb", BOM + b"x", b"{", b"{}}"])
def test_what_is_no_object_is_read_as_an_empty_one(body: bytes) -> None:
    assert read_object(body) == {}


@pytest.mark.parametrize("body", [b'{"a":1}', b' \r\n\t{"a":1} ', BOM + b'{"a":1}', BOM + b' {"a":1}'])
def test_an_object_is_read_with_what_may_stand_before_it(body: bytes) -> None:
    assert read_object(body) == {"a": msgspec.Raw(b"1")}


# What brackets in strings, or an escaped quote, would make of the nesting.
deceiving = st.text('[]{}":\\x', max_size=6).map(lambda text: json.dumps(text * 200))


@given(st.integers(MAX_NESTING - 3, MAX_NESTING + 1), st.lists(deceiving, max_size=3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_scanner_goes_as_deep_as_it_may_whatever_strings_hold(
    depth: int, strings: list[str], in_objects: bool
) -> None:
    opening, closing = ('{"[":', "}") if in_objects else ("[", "]")
    nested = opening * (depth - 2) + "[" + ",".join(strings) + "]" + closing * (depth - 2)
    body = f'{{"odd":NaN,"nested":{nested},"strings":[{",".join(strings)}]}}'.encode()
    if depth <= MAX_NESTING:
        assert values(body)["nested"] == nested.encode()
    else:
        with pytest.raises(ValueError, match="nested too deep"):
            decode_members(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", {}),
        (b" {\r\n\t} ", {}),
        (b'{ "a" : [1 , 2] , "b":1 }', {"a": b"[1 , 2]", "b": b"1"}),
        (b'{"model":"a","x":1,"model":"b"}', {"model": b'"b"', "x": b"1"}),
        (b'{"model":"a","mod\\u0065l":"b"}', {"model": b'"b"'}),
        (b'{"mod\\u0065l":NaN}', {"model": b"NaN"}),
        (b'{"a":{"model":"b"}}', {"a": b'{"model":"b"}'}),
        (b'{"a":NaN,"b":Infinity,"c":-Infinity}', {"a": b"NaN", "b": b"Infinity", "c": b"-Infinity"}),
        (b'{"a":[1.0,NaN],"a":2}', {"a": b"2"}),
        (b'{"a":"cut emoji \\ud83d"}', {"a": b'"cut emoji \\ud83d"'}),
        (b'{"\\ud83d\\ude00":1}', {"\U0001f600": b"1"}),
        (b'{"\\ud83d\\ude00":NaN}', {"\U0001f600": b"NaN"}),
        ('{"ключ":NaN}'.encode(), {"ключ": b"NaN"}),
        (BOM + b'{"a":1}', {"a": b"1"}),
        (BOM + b' {"a":1}', {"a": b"1"}),
        (b'{"a":"\xff\xc0\xaf"}', {"a": b'"\xff\xc0\xaf"'}),
        (b'{"a":"\xff","b":NaN}', {"a": b'"\xff"', "b": b"NaN"}),
        (b'{"a":' + b"9" * 5000 + b"}", {"a": b"9" * 5000}),
        (b'{"a":' + b"9" * 5000 + b',"b":NaN}', {"a": b"9" * 5000, "b": b"NaN"}),
        (b'{"a":-0,"b":1E5,"c":1e400,"d":1.0}', {"a": b"-0", "b": b"1E5", "c": b"1e400", "d": b"1.0"}),
        (b'{"a":-0,"b":1E5,"c":1e400,"d":NaN}', {"a": b"-0", "b": b"1E5", "c": b"1e400", "d": b"NaN"}),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", {"a": b"[" * 500 + b"]" * 500}),
    ],
)
def test_members_keep_the_bytes_of_their_values(body: bytes, expected: dict[str, bytes]) -> None:
    assert values(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        BOM,
        b"[]",
        b"null",
        b'"text"',
        b'[{"model":"a"}]',
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":NaN',
        b'{"a":NaN,',
        b'{"a":NaN]',
        b'{"a":NaN "b":1}',
        b'{"a":NaN,"b"}',
        b'{"a":NaN,}',
        b'{"a":1,}',
        b'{,"a":1}',
        b'{"a":1}{"a":1}',
        b'{"a":NaN}{}',
        b'{"a":NaN} x',
        # White space elsewhere, but not in JSON: the last two are what latin-1 makes of bytes of UTF-8.
        b'{"a":NaN\x0b}',
        b'{\x0c"a":NaN}',
        b'{"a":NaN,\x85"b":1}',
        b'{"a":\xa0NaN}',
        b"{a:1}",
        b"{'a':1}",
        b'{"a":1 /* why */}',
        b'{"a":01}',
        b'{"a":"\\x41"}',
        b'{"a":"\x01"}',
        b'{"\xff":1}',
        b'{"\xff":NaN}',
        b'{"a":NaN,"\xc0\xaf":1}',
        b'{"\\ud800":1}',
        BOM + BOM + b'{"a":1}',
        *('{"a":1}'.encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")),
    ],
)
def test_what_is_not_one_json_object_in_utf_8_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it is the documented contract, the texts differ
        decode_members(body)


def test_the_scanner_takes_a_body_of_its_limit_and_none_above() -> None:
    def body(size: int) -> bytes:
        return b'{"b":NaN,"a":"' + b"x" * (size - 16) + b'"}'

    assert len(body(MAX_SCANNED_BYTES)) == MAX_SCANNED_BYTES
    assert values(body(MAX_SCANNED_BYTES))["b"] == b"NaN"
    with pytest.raises(ValueError, match="too large"):
        decode_members(body(MAX_SCANNED_BYTES + 1))


def test_a_body_above_the_limit_of_the_scanner_is_taken_if_it_needs_no_scanner() -> None:
    text = b'"' + b"x" * MAX_SCANNED_BYTES + b'"'
    assert values(b'{"a":' + text + b',"model":"m"}') == {"a": text, "model": b'"m"'}


@pytest.mark.parametrize("member", [b'"":0', b'"" :0', b'"%d":[]'])
def test_a_body_has_so_many_members_and_no_more(member: bytes) -> None:
    def body(count: int) -> bytes:
        members = b",".join(member % n if b"%" in member else member for n in range(count))
        return b'{"a":[' + b'"x",' * MAX_MEMBERS + b"{" + members + b"}]}"

    assert list(decode_members(body(MAX_MEMBERS - 1))) == ["a"]
    with pytest.raises(ValueError, match="too many members"):
        decode_members(body(MAX_MEMBERS))


@pytest.mark.parametrize("name", ["x", "%d"])
def test_the_scanner_takes_so_many_members_at_top_level_and_no_more(name: str) -> None:
    def body(count: int) -> bytes:
        members = [f'"{name.replace("%d", str(number))}":{{}}' for number in range(count - 1)]
        return ("{" + ",".join([*members, '"odd":NaN']) + "}").encode()

    assert values(body(MAX_SCANNED_MEMBERS))["odd"] == b"NaN"
    with pytest.raises(ValueError, match="too many members for the scanner"):
        decode_members(body(MAX_SCANNED_MEMBERS + 1))


@pytest.mark.parametrize("piece", ["[],", "{},", '{"":0},', '"[",[],'])
def test_the_scanner_builds_so_many_objects_and_no_more(piece: str) -> None:
    marks = sum(piece.replace('"["', "").count(mark) for mark in "[{:]}")

    def body(count: int) -> bytes:
        return f'{{"odd":NaN,"a":[{piece * count}0],"text":"{{[:" }}'.encode()

    room = (MAX_SCANNED_MARKS - len("{::[]:}")) // marks
    assert values(body(room))["odd"] == b"NaN"
    with pytest.raises(ValueError, match="too large for the scanner"):
        decode_members(body(room + 1))


@pytest.mark.parametrize(
    ("body", "model", "expected"),
    [
        (b'{"a": 1, "model": "old", "b": [2]}', "new", b'{"a":1,"model":"new","b":[2]}'),
        (b'{"model":"a","model":"b","mod\\u0065l":"c"}', "new", b'{"model":"new"}'),
        (b'{"x":{"model":"old"},"n":NaN}', "new", b'{"x":{"model":"old"},"n":NaN,"model":"new"}'),
        (b"{}", "new", b'{"model":"new"}'),
        (b'{"model":null}', 'a"b\\', b'{"model":"a\\"b\\\\"}'),
        (b'\xef\xbb\xbf{"model":{"x":1}}', "ß", '{"model":"ß"}'.encode()),
    ],
)
def test_a_model_is_put_where_the_old_one_was_or_at_the_end(body: bytes, model: str, expected: bytes) -> None:
    assert put_model(decode_members(body), model) == expected


@pytest.mark.parametrize("start", [b'{"model":"m","a":', b'{"model":NaN,"a":'])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("is_closed", [True, False])
def test_endless_nesting_takes_bounded_memory(start: bytes, opening: bytes, closing: bytes, is_closed: bool) -> None:
    body = start + opening * DEPTH + (b"1" + closing * DEPTH + b"}") * is_closed
    tracemalloc.start()
    try:
        # Where nothing odd calls for the scanner, nothing is built, and the interpreter may go as deep as it can.
        with contextlib.suppress(ValueError) if is_closed else pytest.raises(ValueError):  # noqa: PT011
            decode_members(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"text"', "text"),
        (b'"\\u0061\\ud83d\\ude00"', "a\U0001f600"),
        (b'""', ""),
        (b'"\xff"', None),
        (b'"\\ud800"', None),
        (b"NaN", None),
        (b"null", None),
        (b"1", None),
        (b'["a"]', None),
        (b"[" * DEPTH, None),
    ],
)
def test_a_value_is_a_string_or_none(value: bytes, expected: str | None) -> None:
    assert find_string({"model": msgspec.Raw(value)}, ("model",)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model", "top"),
        ("message.model", "nested"),
        ("models.0", "first"),
        ("models.1", None),
        ("models.2.model", "third"),
        ("models.3.0", "inner"),
        ("models.4", "last"),
        ("models.5", None),
        ("models.-1", None),
        ("models.+0", None),
        ("models. 0", None),
        ("models.²", None),
        ("models." + "9" * 5000, None),
        ("models.model", None),
        ("models.2.missing.deeper", None),
        ("spaced.0", "after space"),
        ("positions.0", "named by a number"),
        ("positions.1", None),
        ("odd.model", "beside NaN"),
        ("odd.list.0", None),
        ("model.0", None),
        ("model.model", None),
        ("number", None),
        ("number.0", None),
        ("nothing", None),
        ("nothing.model", None),
        ("missing", None),
        ("missing.model", None),
        ("deep.0.0", None),
        ("deep.model", None),
    ],
)
def test_a_string_is_found_by_its_path(path: str, expected: str | None) -> None:
    members = decode_members(
        b'{"model":"top","message":{"role":"x","model":"nested"},"number":5,"nothing":null,'
        b'"models":["first",1,{"model":"third"},["inner"],"last"],"spaced": [ "after space" ],'
        b'"positions":{"0":"named by a number"},"odd":{"x":NaN,"model":"beside NaN","list":[NaN]}}'
    )
    members["deep"] = msgspec.Raw(b"[" * DEPTH)
    assert find_string(members, tuple(path.split("."))) == expected


def test_a_position_is_looked_up_in_an_array_of_the_limit_and_in_none_above() -> None:
    def members(count: int) -> Members:
        return decode_members(b'{"models":["first"' + b",1" * (count - 1) + b"]}")

    assert find_string(members(MAX_ITEMS), ("models", "0")) == "first"
    assert find_string(members(MAX_ITEMS + 1), ("models", "0")) is None


def test_a_position_is_looked_up_in_an_array_with_a_large_text() -> None:
    members = decode_members(b'{"messages":["' + b"x" * (2 * MAX_SCANNED_BYTES) + b'","last"]}')
    assert find_string(members, ("messages", "1")) == "last"


def test_a_look_into_an_endless_array_takes_bounded_memory() -> None:
    body = b'{"models":[' + b"1," * MAX_SCANNED_BYTES + b'"last"]}'
    members = decode_members(body)
    tracemalloc.start()
    try:
        assert find_string(members, ("models", str(MAX_SCANNED_BYTES))) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(body)


@pytest.mark.parametrize("path", ["model", "a.b", "models.0", "models.1.name", "x.0.1.y"])
def test_a_string_is_put_where_one_is_found(path: str) -> None:
    text = b'{"n":1E5,"model":"o","a":{"b":"o","c":1.0},"models":["o",{"name":"o"}],"x":[[0,{"y":"o"}]]}'
    where = tuple(path.split("."))
    put = put_string(text, where, "new")
    assert find_string(decode_members(put), where) == "new"
    assert put_string(put, where, "o") == text


@given(
    st.lists(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text()), st.dictionaries(st.text(), st.text())))
)
def test_the_last_items_of_an_array_are_its_own_from_the_end(items: list[Any]) -> None:
    text = json.dumps(items)
    for array in (text, text.replace(", ", " ,\n")[:-1] + " ]"):
        try:
            wanted = json.loads(array)[::-1]
        except ValueError:  # the spaces were in a text
            continue
        for count in (1, 2, 100):
            assert [json.loads(bytes(item)) for item in last_items(msgspec.Raw(array), count)] == wanted[:count]


@pytest.mark.parametrize("space", ["", " "])
def test_items_that_msgspec_refuses_are_found_by_the_scanner(space: str) -> None:
    array = f'[{space}"\\ud83d"{space},{space}{{"a": NaN}}{space},[1,2]{space}]{space}'
    assert [bytes(item) for item in last_items(msgspec.Raw(array), 2)] == [b"[1,2]", b'{"a": NaN}']
    assert last_items(msgspec.Raw("[ ]"), 2) == []


@pytest.mark.parametrize(
    "array",
    [
        "{}",
        "1",
        "[1",
        "[NaN",
        "[NaN] 1",
        "[NaN 1]",
        "[NaN,]",
        "[" * 100_000,
        "[NaN" + ",1" * 1_000 + "]",
        "[1" + ",1" * 100_000 + "]",
    ],
    ids=lambda array: array[:10],
)
def test_what_is_no_array_or_would_take_long_is_refused(array: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        last_items(msgspec.Raw(array), 2)


def test_a_text_is_decoded_and_nothing_else_is() -> None:
    assert decode_text(msgspec.Raw('"a\\n\\ud83d"')) == "a\n\ud83d"
    assert decode_text(msgspec.Raw('"a"')) == "a"
    assert decode_text(msgspec.Raw('["a"]')) is None
    with pytest.raises(ValueError, match="too large"):
        decode_text(msgspec.Raw('"' + "a" * 1_048_576 + '"'))
