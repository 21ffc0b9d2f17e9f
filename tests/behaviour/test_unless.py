"""Answers that decide nothing: a gateway's own fallback, and those that `decisions.unless` names."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from asgi_driver import JSON_TYPE, SESSION, SSE_TYPE, Answer, Header, asked_model, call, read_body, respond
from asgi_session_pin import Config, Decisions, SessionPinMiddleware, get_session_pin
from behaviour_document import Section, case

AUTO = {"model": "auto"}
CAUSE = b"x-litellm-complexity-router-cause"
UNLESS: dict[str, tuple[str, ...]] = {
    "header:X-LiteLLM-Complexity-Router-Cause": ("housekeeping", "*fallback"),
    "header:x-other": ("a", "b"),
}


class Router:
    """Answers for the next of *choices*, a model and a header."""

    def __init__(self, *choices: tuple[str, Header], streams: bool = False) -> None:
        self.choices = list(choices)
        self.streams = streams
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(asked_model(await read_body(receive)))
        model, header = self.choices.pop(0)
        await asyncio.sleep(0)  # others come meanwhile
        chunk = b'{"model":"%s"}' % model.encode()
        if self.streams:
            return await respond(send, b"data: " + chunk + b"\n\n", b"data: [DONE]\n\n", headers=[SSE_TYPE, header])
        return await respond(send, chunk, headers=[JSON_TYPE, header])


def pinned(router: Router) -> SessionPinMiddleware:
    return SessionPinMiddleware(router, config=Config(decisions=Decisions(unless=UNLESS)))


async def ask(middleware: SessionPinMiddleware) -> Answer:
    return await call(middleware, AUTO, SESSION)


NOTHING = [
    (CAUSE, b"housekeeping"),
    (CAUSE.title(), b" classifier_fallback "),
    (b"x-other", b"b"),
    (b"x-litellm-attempted-fallbacks", b"1"),
]


@case(
    Section.RESPONSE,
    "the gateway's own fallback (`x-litellm-attempted-fallbacks` is not 0), or an answer that `decisions.unless` names",
    "served, and nothing is pinned; those that waited take their turn",
)
@pytest.mark.parametrize("header", NOTHING)
@pytest.mark.parametrize("streams", [False, True])
async def test_such_an_answer_decides_nothing_and_the_next_one_does(header: Header, streams: bool) -> None:
    plain = (b"x-litellm-attempted-fallbacks", b"0")
    router = Router(("small", header), ("large", plain), ("large", plain), streams=streams)
    middleware = pinned(router)
    answers = await asyncio.gather(*(ask(middleware) for _ in range(3)))
    assert [answer.pin_status for answer in answers] == ["miss", "miss", "wait"]
    assert router.asked == ["auto", "auto", "large"]


@pytest.mark.parametrize("header", [(CAUSE, b"heuristic_scorer"), (CAUSE, b"Housekeeping"), (b"x-other", b"ab")])
async def test_any_other_answer_decides(header: Header) -> None:
    router = Router(("small", header), ("small", header))
    middleware = pinned(router)
    assert [(await ask(middleware)).pin_status for _ in range(2)] == ["miss", "hit"]


async def test_what_the_apps_own_router_states_decides_nevertheless() -> None:
    router = Router(("small", NOTHING[0]), ("small", NOTHING[0]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pin = get_session_pin(scope)
        assert pin is not None
        pin.record("small")
        await router(scope, receive, send)

    middleware = SessionPinMiddleware(app, config=Config(decisions=Decisions(unless=UNLESS)))
    assert [(await ask(middleware)).pin_status for _ in range(2)] == ["miss", "hit"]


async def test_under_a_pin_it_says_nothing() -> None:
    router = Router(("small", (b"x-other", b"c")), ("small", NOTHING[0]), ("small", NOTHING[0]))
    middleware = pinned(router)
    assert [(await ask(middleware)).pin_status for _ in range(3)] == ["miss", "hit", "hit"]
