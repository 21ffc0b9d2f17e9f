"""What type checkers see of the public names; `scripts/lint` runs mypy over these."""

from collections.abc import Mapping
from typing import Any, assert_type

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Scope

from asgi_session_pin import (
    Config,
    MemoryStore,
    Pin,
    PinEvent,
    PinStore,
    Routing,
    SessionPin,
    SessionPinMiddleware,
    get_pinning,
    get_session_pin,
)
from asgi_session_pin.gateway import create_gateway


def test_a_middleware_takes_what_the_documents_say() -> None:
    events: list[PinEvent] = []
    settings: Mapping[str, Any] = {"routing": {"session_ttl_seconds": 60}}
    stated: list[SessionPinMiddleware] = [
        SessionPinMiddleware(Starlette()),
        SessionPinMiddleware(Starlette(), config=Config(routing=Routing(router_models=("auto",)))),
        SessionPinMiddleware(Starlette(), config=settings, store=MemoryStore(), listeners=[events.append]),
        SessionPinMiddleware(Starlette(), session_id=lambda scope: scope.get("session"), clock=lambda: 0.0),
        create_gateway("http://127.0.0.1:9", settings, listeners=[events.append]),
    ]
    for middleware in stated:
        assert_type(get_pinning(middleware), SessionPinMiddleware)
        assert get_pinning(middleware) is middleware


def test_a_starlette_app_takes_it_as_one_of_its_own() -> None:
    app = Starlette()
    app.add_middleware(SessionPinMiddleware, config=Config())
    assert app.user_middleware


def test_a_router_sees_a_pin_or_none() -> None:
    scope: Scope = {"type": "http", "headers": []}
    assert_type(get_session_pin(scope), SessionPin | None)
    assert_type(get_session_pin(Request(scope)), SessionPin | None)
    assert get_session_pin(scope) is None


def test_a_store_is_one_by_its_methods() -> None:
    store: PinStore = MemoryStore()
    assert isinstance(store, MemoryStore)
    assert_type(Pin("model", 0.0).model, str)
