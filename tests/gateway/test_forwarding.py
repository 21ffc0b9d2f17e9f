"""The answers that the gateway gives by itself."""

import pytest

from asgi_session_pin.gateway.forwarding import upgrade_required


@pytest.mark.parametrize(("version", "upgrade"), [("1.1", "HTTP/1.1"), ("2", None)])
def test_a_websocket_is_refused_by_what_makes_its_client_ask_by_http(version: str, upgrade: str | None) -> None:
    response = upgrade_required({"http_version": version}, "no websocket here")
    assert response.status_code == 426
    assert response.headers.get("upgrade") == upgrade  # HTTP/2 has no such header (RFC 9113, section 8.2.2)
