"""One request and its answer on a connection to the upstream: what is sent."""

from collections.abc import AsyncIterator

import pytest

from asgi_session_pin.gateway.sending import Body, Request
from behaviour_document import Section, case


async def pieces() -> AsyncIterator[bytes]:
    yield b"piece"


@pytest.mark.parametrize("target", [b"/", b"*", b"/%C3%A4?a=%zz", b"/\xe4#fragment", b"//a/../b;c"])
def test_a_target_is_sent_byte_for_byte(target: bytes) -> None:
    assert Request(b"GET", target, [(b"host", b"a")], None).head == b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % target


def test_headers_are_sent_byte_for_byte() -> None:
    headers = [(b"b", b"  \xe4\t"), (b"a", b""), (b"b", b"2")]
    assert Request(b"GET", b"/", headers, None).head == b"GET / HTTP/1.1\r\nb:   \xe4\t\r\na: \r\nb: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("length", "body", "expected"),
    [
        (b"5", b"whole", b"content-length: 5\r\nb: 2\r\n\r\n"),
        (b"9", b"whole", b"content-length: 5\r\nb: 2\r\n\r\n"),
        (None, b"whole", b"b: 2\r\ncontent-length: 5\r\n\r\n"),
        (None, b"", b"b: 2\r\ncontent-length: 0\r\n\r\n"),
        (b"5", pieces(), b"content-length: 5\r\nb: 2\r\n\r\n"),
        (None, pieces(), b"b: 2\r\ntransfer-encoding: chunked\r\n\r\n"),
        (None, None, b"b: 2\r\n\r\n"),
    ],
)
def test_the_framing_is_that_of_the_body(length: bytes | None, body: Body, expected: bytes) -> None:
    headers = [(b"b", b"2")] if length is None else [(b"content-length", length), (b"b", b"2")]
    assert Request(b"POST", b"/", headers, body).head == b"POST / HTTP/1.1\r\n" + expected


@case(
    Section.GATEWAY,
    "a request has a control character or anything else that would be read as another one",
    "400: it can't be forwarded as it is",
)
@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\x00", b"\x7f"])
def test_what_would_be_read_as_something_else_is_refused(bad: bytes) -> None:
    for method, target, value in ((b"G" + bad, b"/", b""), (b"GET", b"/" + bad, b""), (b"GET", b"/", bad)):
        with pytest.raises(ValueError, match="characters"):
            Request(method, target, [(b"a", value)], None)


@pytest.mark.parametrize(("method", "target"), [(b"", b"/"), (b"G T", b"/"), (b"GET", b"/a b")])
def test_a_request_line_has_three_parts(method: bytes, target: bytes) -> None:
    with pytest.raises(ValueError, match="characters"):
        Request(method, target, [], None)


@pytest.mark.parametrize("length", [b"", b"+1", b"1_0", b"-1", b"1, 1", b"\xb2"])
def test_a_length_is_digits(length: bytes) -> None:
    with pytest.raises(ValueError, match="content-length"):
        Request(b"POST", b"/", [(b"content-length", length)], pieces())
