"""The facts of an error, in whatever shape it comes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.response.errors import MAX_VALUE, Error, find_error, read_error, read_members
from asgi_session_pin.wire.json import decode_members


def found(text: str, event: str | None = None) -> Error | None:
    return find_error(decode_members(text.encode()), event)


def facts(*words: str, param: str | None = None, text: str = "") -> Error:
    return Error(frozenset(words), param, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"error":{"message":"no","type":"server_error","param":null,"code":503}}', facts("servererror", text="no")),
        ('{"error":{"code":"DeploymentNotFound","message":"no"}}', facts("deploymentnotfound", text="no")),
        ('{"error":{"code":"Content-Filter","param":"prompt"}}', facts("contentfilter", param="prompt")),
        ('{"error":{"innererror":{"code":"x y"},"status":"NOT_FOUND"}}', facts("xy", "notfound")),
        ('{"error":{"innererror":"x"}}', facts()),
        ('{"error":{"type":"None","param":"None","code":"null"}}', facts()),
        ('{"error":{"type":"","param":"","code":""}}', facts()),
        ('{"error":{"message":{"error":"no"}}}', facts(text="no")),
        ('{"error":{"message":{"message":"no"}}}', facts(text="no")),
        ('{"error":{"message":["no"]}}', facts()),
        ('{"error":{"msg":"no"}}', facts(text="no")),
        ('{"error":[{"message":"no"}]}', facts(text="no")),
        ('{"error":[[]]}', facts()),
        ('{"error":"no"}', facts(text="no")),
        ('{"error":true}', facts()),
        ('{"error":1}', facts()),
        ('{"error":"no","code":"model_not_found","type":1}', facts("modelnotfound", text="no")),
        ('{"type":"error","error":{"type":"overloaded_error"}}', facts("overloadederror")),
        ('{"type":"error","code":"rate_limit_exceeded","param":"n"}', facts("ratelimitexceeded", param="n")),
        ('{"object":"error","message":"no","type":"NotFoundError"}', facts("notfounderror", text="no")),
        ('{"type":"response.failed","response":{"error":{"code":"server_error"}}}', facts("servererror")),
        ('{"type":"response.failed","response":[]}', facts()),
        ('{"type":"response.failed"}', facts()),
        ('{"object":"response","status":"failed"}', facts()),
        ('{"base_resp":{"status_code":1004,"status_msg":"no"}}', facts(text="no")),
        ('{"choices":[{},{"finish_reason":"error"}]}', facts()),
        ('{"error":{"code":NaN}}', facts()),
        ('{"error":{"code":"\\ud800"}}', facts()),
    ],
)
def test_an_object_that_is_an_error_tells_its_facts(text: str, expected: Error) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        *(f'{{"error":{value}}}' for value in ("null", "false", "0", '""', "{}", "[]")),
        '{"type":"message"}',
        '{"type":["error"]}',
        '{"object":"chat.completion"}',
        '{"status":"failed"}',
        '{"object":"response","status":"completed"}',
        '{"base_resp":{"status_code":0}}',
        '{"base_resp":{"status_code":null}}',
        '{"base_resp":{}}',
        '{"base_resp":"no"}',
        '{"choices":[{"finish_reason":"stop"}]}',
        '{"choices":[{"message":{"content":"error"}}]}',
        '{"choices":"error"}',
        '{"choices":[{"finish_reason":["error"]}]}',
    ],
)
def test_an_object_that_is_none_tells_nothing(text: str) -> None:
    assert found(text) is None


def test_the_name_of_an_event_makes_an_error() -> None:
    assert found('{"message":"no","code":"x"}', "error") == facts("x", text="no")
    assert found('{"response":{"error":{"code":"x"}}}', "response.failed") == facts("x")
    assert found('{"message":"no"}', "message") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"error":{"status":"UNAVAILABLE","message":"no"}}]', facts("unavailable", text="no")),
        (b" \n[]", facts(text=" \n[]")),
        (b"[1]", facts(text="[1]")),
        (b"[" * 3000, facts(text="[" * 3000)),
        (b"Bad Gateway", facts(text="Bad Gateway")),
        (b"\xff", facts(text="�")),
        (b"", facts()),
        (b"{}", facts(text="{}")),
        (b'{"detail":"no"}', facts(text="no")),
        (b'{"detail":{"error":{"code":"x"}}}', facts("x")),
        (b'{"detail":{"code":"x","message":"no"}}', facts("x", text="no")),
        (b'{"detail":[{"msg":"no"}]}', facts()),
        (b'{"message":"no","type":"x"}', facts("x", text="no")),
        (b'\xef\xbb\xbf{"message":"no"}', facts(text="no")),
    ],
)
def test_what_is_known_to_be_an_error_is_read_whatever_its_shape(content: bytes, expected: Error) -> None:
    assert read_error(content) == expected


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("no\nReceived Model Group=a\nAvailable Model Group Fallbacks=None", "no"),
        ("no. Received Model Group=a", "no."),
        ("no \n Available Model Group Fallbacks=['a']", "no"),
        ("Received Model Groups", "Received Model Groups"),
        (" " * 60_000 + "Received Model Group=a", " " * 4096),
    ],
)
def test_what_litellm_adds_to_every_message_is_no_part_of_it(message: str, text: str) -> None:
    assert read_error(json.dumps({"error": {"message": message}}).encode()).text == text


def test_a_value_that_is_larger_than_any_errors_is_not_read() -> None:
    large = "x" * MAX_VALUE
    assert found(json.dumps({"error": large})) == facts()
    assert found(json.dumps({"error": {"message": large[:60_000]}})) == facts(text="x" * 4096)
    assert found(json.dumps({"choices": [{"finish_reason": "error", "x": large}]})) is None
    assert read_error(json.dumps([{"error": {"code": large}}]).encode()).words == frozenset()
    assert read_error(json.dumps({"code": "x", "message": large}).encode()).words == frozenset()
    assert found('{"type":"response.failed","response":{"error":{"code":"x"},"y":"%s"}}' % (large * 20)) == facts()


values = st.recursive(
    st.sampled_from([None, True, 0, 1, 1e300, "", "error", "response.failed", "no", "None", "\udfff"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("error", "type", "object", "response", "base_resp", "status_code", "status", "choices", "code"),
                    *("finish_reason", "param", "message", "detail", "innererror"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values, st.sampled_from([None, "error", "response.failed", "ping"]), st.integers(0, 200))
def test_no_value_raises_and_all_facts_are_bounded(value: object, event: str | None, cut: int) -> None:
    content = json.dumps(value).encode()
    for text in (content, content[:cut], content[cut:]):
        error = read_error(text, event)
        assert all(isinstance(word, str) for word in error.words)
        assert error.param is None or isinstance(error.param, str)
        assert len(error.text) <= 4096


@pytest.mark.parametrize("text", ['{"error":{"code":%s}}', '{"choices":[{"error":%s}]}', "[%s]", '{"detail":%s}'])
def test_no_nesting_raises_however_deep(text: str) -> None:
    for depth in [*range(1, 1200), 30_000]:
        for nested in ("[" * depth + "]" * depth, "[" * depth, '{"error":' * depth):
            assert len(read_error((text % nested).encode()).text) <= 4096


@given(st.binary(max_size=200))
def test_no_bytes_raise(content: bytes) -> None:
    assert len(read_error(content).text) <= 4096


def test_an_array_that_is_larger_than_any_error_is_not_read() -> None:
    with pytest.raises(ValueError, match="too large"):
        read_members(b'[{"error":{}}' + b",0" * 40_000 + b"]")
