"""Headers on their way through the reverse proxy."""

import pytest

from asgi_driver import Header, http_scope
from asgi_session_pin.gateway.end_to_end import RequestHeaders, ResponseHeaders
from asgi_session_pin.request.scope import SCOPE_KEY
from asgi_session_pin.wire.url import read_upstream
from behaviour_document import Section, case

OWN = [(b"x-forwarded-proto", b"http")]


def sent(*headers: Header, **scope: object) -> list[Header]:
    return RequestHeaders(()).make(http_scope(*headers) | scope)


def test_headers_pass_in_their_order_with_their_bytes() -> None:
    headers = [(b"b", b"1"), (b"a", b"  \xe4\t"), (b"B", b"2"), (b"a", b""), (b"te", b"x")]
    assert sent(*headers) == [(b"b", b"1"), (b"a", b"  \xe4\t"), (b"b", b"2"), (b"a", b""), *OWN]


def test_headers_of_the_connection_stay_behind() -> None:
    headers = [(b"connection", b"Keep-Alive, x-hop,X-Other"), (b"x-hop", b"1"), (b"X-Other", b"2")]
    headers += [(b"te", b"a"), (b"upgrade", b"h2c"), (b"transfer-encoding", b"chunked"), (b"keep", b"3")]
    headers.append((b"content-length", b"9"))
    assert sent(*headers) == [(b"keep", b"3"), *OWN]


@pytest.mark.parametrize("name", [b"bad name", b"", b"a:", b"\xe4"])
def test_a_name_that_is_no_token_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="no token"):
        sent((name, b"1"))


@case(
    Section.GATEWAY,
    "the client sends `X-Session-Pinned`, `X-Session-Model` or `X-Session-Pin`, also with `_`, on any path",
    "they are dropped; `Connection` takes none of the gateway's own away",
)
def test_marks_are_the_gateways_own() -> None:
    marks = [(b"x-session-pinned", b"true"), (b"X-Session-Model", b"m"), (b"x-session-pin", b"off")]
    aliases = [(name.replace(b"-", b"_"), value) for name, value in marks] + [(b"x-session_model", b"m")]
    assert sent(*marks, *aliases) == OWN
    assert sent(*marks, *aliases, **{SCOPE_KEY: None}) == OWN, "the middleware has not looked at these"
    named = (b"connection", b"x-session-pinned, x-session-model")
    pinned = sent(named, *marks[:2], *aliases, **{SCOPE_KEY: object()})
    assert pinned == [(b"x-session-pinned", b"true"), (b"x-session-model", b"m"), *OWN]


@case(Section.GATEWAY, "cookies that HTTP/2 split", "reach the upstream in one line")
@pytest.mark.parametrize("version", ["2", "3"])
def test_cookies_are_one_line(version: str) -> None:
    headers = [(b"a", b"1"), (b"cookie", b"b=2"), (b"c", b"3"), (b"cookie", b"d=4")]
    joined = [(b"a", b"1"), (b"cookie", b"b=2; d=4"), (b"c", b"3"), *OWN]
    assert sent(*headers, http_version=version) == joined
    assert sent(*headers[:2], http_version=version) == [(b"a", b"1"), (b"cookie", b"b=2"), *OWN]
    assert sent(*headers) == [(b"a", b"1"), (b"cookie", b"b=2"), (b"c", b"3"), (b"cookie", b"d=4"), *OWN]


def test_names_without_number_pass() -> None:
    maker = RequestHeaders(())
    for number in range(3000):
        name = b"x-%d" % number if number % 2 else b"x" * 100
        assert maker.make(http_scope((name, b"1")))[0] == (name, b"1")


# The answer


def answered(*headers: Header, upstream: str = "http://up:4000/base", root_path: str = "") -> list[Header]:
    return ResponseHeaders(read_upstream(upstream)).make(headers, root_path)


def test_an_answers_headers_pass_but_for_those_of_the_connection() -> None:
    maker = ResponseHeaders(read_upstream("http://up"))
    headers = [(b"Server", b"\xe4"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    hops = [(b"connection", b"close, x-hop"), (b"X-Hop", b"1"), (b"Transfer-Encoding", b"chunked")]
    for _ in range(2):
        assert maker.make(headers, "") == headers
        assert maker.make([*headers, *hops, (b"content-length", b"9")], "") == headers


@pytest.mark.parametrize("value", [b"a\x00b", b"a\rb", b"\x7f"])
def test_control_characters_of_an_answer_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="control character"):
        answered((b"a", value))


@case(
    Section.GATEWAY,
    "`Location` names the upstream's own address",
    "it leads through the gateway, also below a mount; any other one stays",
)
@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"http://up:4000/base/v1/x?a=%20#f", b"/v1/x?a=%20#f"),
        (b"HTTP://UP:4000/base", b"/"),
        (b"//up:4000/base/x", b"/x"),
        (b"/base/x", None),
        (b"x", None),
        (b"http://up:4000/other", None),
        (b"http://up:4000/basement", None),
        (b"http://up:4001/base/x", None),
        (b"http://user@up:4000/base/x", None),
        (b"https://up:4000/base/x", None),
        (b"http://up:4000/base//evil.example", None),
        (b"http://up:4000/base/\\evil.example", None),
    ],
)
def test_a_location_leads_through_the_gateway(location: bytes, expected: bytes | None) -> None:
    assert answered((b"Location", location)) == [(b"Location", expected or location)]


@pytest.mark.parametrize(
    ("upstream", "location", "expected"),
    [
        ("http://up", b"http://up:80?a", b"/llm/?a"),
        ("http://up:80", b"http://up", b"/llm/"),
        ("https://up", b"http://up/x", b"/llm/x"),  # whoever is behind TLS often doesn't know
        ("https://up:443", b"https://up/x", b"/llm/x"),
        ("http://up", b"https://up/x", b"https://up/x"),
        ("http://[::1]:80", b"http://[::1]/x", b"/llm/x"),
    ],
)
def test_a_location_leads_below_the_mount(upstream: str, location: bytes, expected: bytes) -> None:
    assert answered((b"location", location), upstream=upstream, root_path="/llm/") == [(b"location", expected)]
