"""What a request tells of its way to here."""

import pytest

from asgi_driver import Header, http_scope
from asgi_session_pin import Config, ConfigError
from asgi_session_pin.gateway.forwarded import Forwarded, is_forwarded
from behaviour_document import Section, case

TOLD = [
    (b"x-forwarded-for", b"10.0.0.1"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"public"),
    (b"x-forwarded-port", b"443"),
    (b"x-real-ip", b"10.0.0.1"),
    (b"forwarded", b"for=10.0.0.1"),
]


def headers(client: str | None, trusted: list[str], told: list[Header] = TOLD) -> dict[bytes, bytes]:
    scope = http_scope() | ({} if client is None else {"client": (client, 1)})
    made = Forwarded(trusted).headers(scope, b"front", told)
    assert len(dict(made)) == len(made)
    return dict(made)


@case(
    Section.GATEWAY,
    "the client says where it comes from (`X-Forwarded-*`, `Forwarded`, `X-Real-IP`)",
    "replaced, as at an edge; believed and added to if the client is in `gateway.trust_forwarded`",
)
@pytest.mark.parametrize("trusted", [[], ["192.0.2.2", "10.0.0.0/8", "2001:db8::/32"]])
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db9::1", "testclient"])
def test_what_anybody_says_is_replaced(client: str, trusted: list[str]) -> None:
    assert headers(client, trusted) == {
        b"x-forwarded-for": client.encode(),
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"front",
    }


@pytest.mark.parametrize(
    ("client", "node"), [("192.0.2.1", b"192.0.2.1"), ("2001:db8::1", b'"[2001:db8::1]"'), ("::ffff:192.0.2.1", None)]
)
def test_what_a_trusted_proxy_says_is_added_to(client: str, node: bytes | None) -> None:
    made = headers(client, ["192.0.2.1/32", "2001:db8::/32"])
    assert made == dict(TOLD) | {
        b"x-forwarded-for": b"10.0.0.1, " + client.encode(),
        b"forwarded": b"for=10.0.0.1, for=" + (node or b'"[%s]"' % client.encode()),
    }
    assert headers(client, ["192.0.2.1", "2001:db8::1"], []) == {
        b"x-forwarded-for": client.encode(),
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"front",
    }


def test_over_a_unix_socket_there_is_no_address() -> None:
    assert headers(None, ["127.0.0.1"]) == {b"x-forwarded-proto": b"http", b"x-forwarded-host": b"front"}


def test_who_comes_over_a_unix_socket_can_be_trusted_and_nobody_else_with_it() -> None:
    assert headers(None, ["unix"]) == dict(TOLD) | {b"forwarded": b"for=10.0.0.1, for=unknown"}
    assert headers(None, ["unix"], []) == {b"x-forwarded-proto": b"http", b"x-forwarded-host": b"front"}
    assert headers("192.0.2.1", ["unix"])[b"x-forwarded-for"] == b"192.0.2.1"
    assert Config.load({"gateway": {"trust_forwarded": ["unix"]}}).gateway.trust_forwarded == ("unix",)


def test_without_a_host_none_is_told() -> None:
    assert Forwarded(()).headers(http_scope(), None, []) == [(b"x-forwarded-proto", b"http")]


@pytest.mark.parametrize(("scheme", "told"), [("ws", b"http"), ("wss", b"https"), ("https", b"https")])
def test_a_websocket_is_forwarded_as_what_it_came_over(scheme: str, told: bytes) -> None:
    assert Forwarded(()).headers({**http_scope(), "scheme": scheme}, None, []) == [(b"x-forwarded-proto", told)]


def test_names_that_tell_of_the_way() -> None:
    assert all(map(is_forwarded, [b"x-forwarded-anything", b"forwarded", b"x-real-ip"]))
    assert not any(map(is_forwarded, [b"x-forward", b"x-real", b"host"]))


@pytest.mark.parametrize("value", ["10.0.0.1/8", "host", "10.0.0.0/33", "", "1:2"])
def test_an_address_that_is_none_is_a_fault(value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Config.load({"gateway": {"trust_forwarded": ["::1", value]}})
    expected = f"gateway.trust_forwarded.1: found {value!r}, expected an address, a network"
    assert [fault.startswith(expected) for fault in raised.value.faults] == [True]
