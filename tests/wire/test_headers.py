import tracemalloc
from collections.abc import Callable, Iterable

import pytest

from asgi_session_pin.wire.headers import (
    _MAX_NAME,
    _MAX_REMEMBERED,
    HeaderPicker,
    NameMemory,
    content_length,
    header_name,
    is_identity,
    without,
)

Headers = list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], {}),
        ([(b"host", b"x"), (b"x-session", b"1")], {}),
        ([(b"x-session-id", b"1"), (b"model", b"2")], {b"x-session-id": b"1", b"model": b"2"}),
        ([(b"X-Session-ID", b"1"), (b"MODEL", b"2")], {b"x-session-id": b"1", b"model": b"2"}),
        ([(b"x-session-id", b"1"), (b"x-session-id", b"1")], {b"x-session-id": b"1\n1"}),
        ([(b"X-Session-ID", b"1"), (b"X-SESSION-ID", b"1")], {b"x-session-id": b"1\n1"}),
        ([(b"x-session-id", b"1"), (b"x-session-id", b"2")], {b"x-session-id": b"1\n2"}),
        ([(b"x-session-id", b"1"), (b"X-Session-Id", b"2")], {b"x-session-id": b"1\n2"}),
        ([(b"X-Session-Id", b"1"), (b"x-session-id", b"2")], {b"x-session-id": b"1\n2"}),
        ([(b"x-session-id", b"1"), (b"x-session-id", b"")], {b"x-session-id": b"1\n"}),
        ([(b"x-session-id", b""), (b"x-session-id", b"1")], {b"x-session-id": b"\n1"}),
        ([(b"x-session-id", value) for value in (b"1", b"2", b"1")], {b"x-session-id": b"1\n2\n1"}),
        (
            [(b"x-session-id", b"1"), (b"model", b"2"), (b"x-session-id", b"3")],
            {b"x-session-id": b"1\n3", b"model": b"2"},
        ),
        ([(b"x-session-id", b"")], {b"x-session-id": b""}),
        ([(b"x-session-id", b"A b")], {b"x-session-id": b"A b"}),
        ([(b"", b"1"), (b"\xff", b"2")], {}),
    ],
)
def test_wanted_headers_are_picked_in_any_case_of_letters(headers: Headers, expected: dict[bytes, bytes]) -> None:
    picker = HeaderPicker([b"X-Session-Id", b"model"])
    assert picker.pick(headers) == expected
    assert picker.pick(headers) == expected  # every name is a remembered one now


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_headers_may_come_as_any_iterable(kind: Callable[[Headers], Iterable[tuple[bytes, bytes]]]) -> None:
    headers = [(b"a", b"1"), (b"B", b"2")]
    assert HeaderPicker([b"b"]).pick(kind(headers)) == {b"b": b"2"}


def test_the_names_wanted_may_come_as_a_generator() -> None:
    assert HeaderPicker(name for name in (b"a", b"b")).pick([(b"A", b"1"), (b"b", b"2")]) == {b"a": b"1", b"b": b"2"}


def test_the_memory_of_names_is_bounded_and_full_memory_loses_no_header() -> None:
    picker = HeaderPicker([b"x-session-id"])
    tracemalloc.start()
    try:
        for number in range(20 * _MAX_REMEMBERED):
            assert picker.pick([(b"%0*d" % (_MAX_NAME, number), b"")]) == {}
        remembered, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 33 bytes are the head of a bytes object; an entry of a dict takes about 100 at the most.
    assert remembered < _MAX_REMEMBERED * (_MAX_NAME + 33 + 100)
    for name in (b"x-session-id", b"X-Session-Id"):
        assert picker.pick([(name, b"1"), (b"new", b"2")]) == {b"x-session-id": b"1"}


def test_long_names_are_not_remembered_and_picked_all_the_same() -> None:
    name = b"x-" + b"n" * 10_000
    picker = HeaderPicker([name])
    tracemalloc.start()
    try:
        for number in range(_MAX_REMEMBERED // 2):
            assert picker.pick([(b"%05d" % number + name, b"")]) == {}
        remembered, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert remembered < 10 * len(name)
    assert picker.pick([(name.upper(), b"1"), (name, b"2")]) == {name: b"1\n2"}


def test_headers_without_some_are_a_copy() -> None:
    headers = [(b"Content-Length", b"1"), (b"a", b"1"), (b"a", b"2"), (b"content-length", b"1"), (b"B", b"3")]
    assert without(headers, {b"content-length", b"b"}) == [(b"a", b"1"), (b"a", b"2")]
    assert without(headers, set()) == headers
    assert without(headers, set()) is not headers
    assert len(headers) == 5


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({b"content-length": b"0"}, 0),
        ({b"content-length": b"1234"}, 1234),
        ({b"content-length": b"9" * 19}, int("9" * 19)),
        ({b"content-length": b"9" * 5000}, None),
        ({}, None),
        ({b"content-length": b""}, None),
        ({b"content-length": b"-1"}, None),
        ({b"content-length": b"+1"}, None),
        ({b"content-length": b"1_0"}, None),
        ({b"content-length": b" 1"}, None),
        ({b"content-length": b"1.0"}, None),
        ({b"content-length": "\N{ARABIC-INDIC DIGIT ONE}".encode()}, None),
        ({b"content-length": b"\xb2"}, None),
        ({b"content-length": b"1\n2"}, None),
    ],
)
def test_a_content_length_is_a_number_or_unknown(headers: dict[bytes, bytes], expected: int | None) -> None:
    assert content_length(headers) == expected


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (b"", True),
        (b" ", True),
        (b"identity", True),
        (b" Identity ", True),
        (b"gzip", False),
        (b"identity, gzip", False),
        (b"identity\ngzip", False),
        (b"identit", False),
    ],
)
def test_only_identity_leaves_a_body_as_it_is(encoding: bytes, expected: bool) -> None:
    assert is_identity(encoding) is expected


def covers(memory: NameMemory, headers: Headers) -> bool:
    return memory.covers(map(header_name, headers))


def test_a_memory_of_names_is_bounded_and_never_claims_what_it_has_not_seen() -> None:
    memory = NameMemory()
    memory.learn([(b"host", b"1"), (b"Accept", b"2"), (b"x" * (_MAX_NAME + 1), b"3")])
    assert covers(memory, [(b"Accept", b"other"), (b"host", b""), (b"host", b"")])
    assert covers(memory, [])
    assert not covers(memory, [(b"host", b"1"), (b"accept", b"2")])
    assert not covers(memory, [(b"x" * (_MAX_NAME + 1), b"3")])
    memory.learn([(b"%d" % number, b"") for number in range(2 * _MAX_REMEMBERED)])
    assert len(memory.names) == _MAX_REMEMBERED
