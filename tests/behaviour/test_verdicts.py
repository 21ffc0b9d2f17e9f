"""Each row of what an answer under a pin can be: every status, each shape of a 200, and what follows from it.

What is expected is written down here as data; the tests try all of it on three APIs, plain and streamed, for a name
that has served and for one that has not.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from starlette.types import Receive, Scope, Send

from asgi_driver import Answer, asked_model, call, read_body, respond
from asgi_session_pin import Config, Failover, SessionPinMiddleware
from behaviour_document import Section, case


class Outcome(NamedTuple):
    """What follows from an answer."""

    routed: bool = False
    gives_up: bool = False  # the pin
    counts: bool = False  # as a failure of the pin, the second of which gives it up here
    proves: bool = False  # the name; of one that has served: failures in a row start again
    refuses: bool = False  # the name, in other sessions too


SERVES = Outcome(proves=True)
PASSES = Outcome()
REFUSED = Outcome(routed=True, gives_up=True, refuses=True)
UNPROVEN = Outcome(routed=True, gives_up=True)
OUT = Outcome(routed=True, counts=True)
LATE = Outcome(counts=True)
LATE_PROOF = Outcome(counts=True, proves=True)  # it has given output before


def statuses(text: str) -> list[int]:
    """Return the statuses in a text like "400-404 422"."""
    numbers: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


ALL = "300-308 400-431 451 499 500-504 520 529"

# What the error says; then statuses, and the outcome for a name that has never served, and for one that has.
BY_STATUS: dict[str, list[tuple[str, Outcome, Outcome]]] = {
    "nothing": [
        ("300-308", PASSES, PASSES),
        ("400 405-407 410-412 414-424 426-428 430-431 451 499", UNPROVEN, PASSES),
        ("401-404", UNPROVEN, OUT),
        ("408 429 500-504 520 529", OUT, OUT),
        ("409 413 425", PASSES, PASSES),
    ],
    "the name": [
        ("300-308", PASSES, PASSES),
        ("400-404 422", REFUSED, REFUSED),
        ("405-407 410-412 414-421 423-424 426-428 430-431 451 499", UNPROVEN, PASSES),
        ("408 429 500-504 520 529", OUT, OUT),
        ("409 413 425", PASSES, PASSES),
    ],
    "the content": [(ALL, PASSES, PASSES)],
    "a rate limit": [
        ("300-308", PASSES, PASSES),
        ("400 405-407 410-412 414-424 426-428 430-431 451 499", UNPROVEN, PASSES),
        ("401-404", UNPROVEN, OUT),
        ("408 413 429 500-504 520 529", OUT, OUT),
        ("409 425", PASSES, PASSES),
    ],
}

# The error of each API that says so.
ERRORS: dict[str, dict[str, bytes]] = {
    "chat": {
        "nothing": b'{"error":{"message":"no","type":null,"param":null,"code":null}}',
        "the name": b'{"error":{"message":"no such model","param":null,"code":"model_not_found"}}',
        "the content": b'{"error":{"message":"too long","param":"messages","code":"context_length_exceeded"}}',
        "a rate limit": b'{"error":{"message":"slower","type":"tokens","param":null,"code":"rate_limit_exceeded"}}',
    },
    "messages": {
        "nothing": b'{"type":"error","error":{"message":"no"}}',
        "the name": b'{"type":"error","error":{"type":"not_found_error","message":"model: a"}}',
        "the content": b'{"type":"error","error":{"message":"prompt is too long: 2 tokens > 1 maximum"}}',
        "a rate limit": b'{"type":"error","error":{"type":"rate_limit_error","message":"slower"}}',
    },
    "responses": {
        "nothing": b'{"error":{"message":"no","type":null,"param":null,"code":null}}',
        "the name": b'{"error":{"message":"The requested model \'a\' does not exist.","param":"model","code":null}}',
        "the content": b'{"error":{"message":"no","param":"tools[0].parameters","code":null}}',
        "a rate limit": b'{"error":{"message":"slower","param":null,"code":"rate_limit_exceeded"}}',
    },
}

# What a 200 gives, with its content type where it is another than that of the API; then the outcomes.
Shape = tuple[bytes, Outcome, Outcome] | tuple[bytes, Outcome, Outcome, bytes]

HTML = b"text/html; charset=utf-8"
TEXT = b"text/plain"
PAGE = b"<!doctype html><title>Sign in</title>"

PLAIN_OF_ALL: list[Shape] = [
    (b'{"error":{"message":"no"}}', OUT, OUT),
    (b'{"error":"no"}', OUT, OUT),
    (b'[{"error":{"message":"no","code":503}}]', OUT, OUT),
    (b'{"type":"error","message":"no"}', OUT, OUT),
    (b'{"object":"error","message":"no","code":400}', OUT, OUT),
    (b'{"base_resp":{"status_code":1004,"status_msg":"no"}}', OUT, OUT),
    (b'{"error":{"type":"rate_limit_error"}}', OUT, OUT),
    (b'{"error":{"type":"overloaded_error"}}', OUT, OUT),
    (b'{"error":{"code":"server_error"}}', OUT, OUT),
    (b'{"error":{"code":"400"}}', OUT, OUT),
    (b'{"error":{"code":404}}', OUT, OUT),
    (b'{"error":{"code":"context_length_exceeded"}}', PASSES, PASSES),
    (b'{"error":{"message":"Your input was flagged by moderation"}}', PASSES, PASSES),
    (b'{"error":{"code":"model_not_found"}}', REFUSED, REFUSED),
    (b'{"error":{"type":"invalid_request_error"}}', UNPROVEN, PASSES),
    (b'{"error":{"type":"permission_error"}}', UNPROVEN, OUT),
    (b"", OUT, OUT),
    (b" \n", OUT, OUT),
    (PAGE, OUT, OUT),
    (PAGE, OUT, OUT, HTML),
    (b'{"error":{"message":"no"}}', OUT, OUT, TEXT),
    (b'{"error":null,"output":"hello"}', SERVES, SERVES),
    (b'{"base_resp":{"status_code":0},"output":"hello"}', SERVES, SERVES),
    (b"{}", SERVES, SERVES),
    (b"hello", SERVES, SERVES, TEXT),
    (b"\x00\x01", SERVES, SERVES, b"application/octet-stream"),
]

STREAMED_OF_ALL: list[Shape] = [
    *(shape for shape in PLAIN_OF_ALL if len(shape) == 3 and shape[0][:1] in b"{["),
    (b"", OUT, OUT),
    (b": OPENROUTER PROCESSING\n\n", OUT, OUT),
    (b": x\n\n: x\n\ndata: [DONE]\n\n", OUT, OUT),
    (b"event: ping\ndata: {}\n\n", OUT, OUT),
    (b'data: {"type":"ping"}\n\n', OUT, OUT),
    (b"data: [DONE]\n\n", OUT, OUT),
    (b"data:\n\n", OUT, OUT),
    (PAGE, OUT, OUT, HTML),
    (b'data: {"error":{"message":"no"}}\n\n', OUT, OUT),
    (b': x\n\ndata: {"error":{"message":"no"}}\n\n', OUT, OUT),
    (b'data: [{"error":{"message":"no","code":503}}]\n\n', OUT, OUT),
    (b'error: {"message":"no"}\n\n', OUT, OUT),
    (b"event: error\ndata: no\n\n", OUT, OUT),
    (b'event: error\ndata: {"error":{"type":"overloaded_error"}}\n\n', OUT, OUT),
    (b'data: {"error":{"type":"rate_limit_error"}}\n\n', OUT, OUT),
    (b'data: {"error":{"code":502}}\n\n', OUT, OUT),
    (b'data: {"error":{"code":"model_not_found"}}\n\n', REFUSED, REFUSED),
    (b'data: {"error":{"code":"context_length_exceeded"}}\n\n', PASSES, PASSES),
    (b'data: {"error":{"type":"invalid_request_error"}}\n\n', UNPROVEN, PASSES),
    (b'data: {"error":{"type":"authentication_error"}}\n\n', UNPROVEN, OUT),
    (b'{"error":{"message":"no"}}', OUT, OUT, b"application/json"),
    (b'{"error":{"message":"no"}}\n', OUT, OUT, b"application/x-ndjson"),
    (b'data: {"error":{"message":"no"}}\n\n', OUT, OUT, TEXT),
    (b'data: {"error":{"message":"no"}}\n\n', OUT, OUT, b"application/json"),
    (b"data: hello\n\n", SERVES, SERVES),
    (b"data: <think>\n\n", SERVES, SERVES),
    (b'data: {"some":"thing"}\n\n', SERVES, SERVES),
    (b'{"some":"thing"}\n', SERVES, SERVES, b"application/x-ndjson"),
    (b"hello, and not an event\n", SERVES, SERVES, TEXT),
    (b"datum\n", SERVES, SERVES, TEXT),
    (b'data: {"some":"thing"}\n\ndata: {"error":{"message":"no"}}\n\n', LATE_PROOF, LATE),
    (b'data: {"some":"thing"}\n\nevent: error\ndata: no\n\n', LATE_PROOF, LATE),
    (b'data: {"some":"thing"}\n\ndata: {"error":{"code":"context_length_exceeded"}}\n\n', SERVES, SERVES),
]

SHAPES: dict[tuple[str, str], list[Shape]] = {
    ("chat", "plain"): [
        (b'{"choices":[{"finish_reason":"error"}]}', OUT, OUT),
        (b'{"choices":[{"message":{"content":"error"},"finish_reason":"stop"}]}', SERVES, SERVES),
        (b'{"choices":[]}', SERVES, SERVES),
    ],
    ("messages", "plain"): [
        (b'{"type":"error","error":{"type":"overloaded_error"}}', OUT, OUT),
        (b'{"type":"message","content":[{"type":"text","text":"hello"}]}', SERVES, SERVES),
    ],
    ("responses", "plain"): [
        (b'{"object":"response","status":"failed","error":{"code":"server_error"}}', OUT, OUT),
        (b'{"object":"response","status":"failed","error":null}', OUT, OUT),
        (b'{"object":"response","status":"failed","error":{"code":"invalid_prompt"}}', PASSES, PASSES),
        (b'{"object":"response","status":"completed","error":null,"output":[]}', SERVES, SERVES),
        (b'{"object":"response","status":"incomplete","output":[]}', SERVES, SERVES),
    ],
    ("chat", "streamed"): [
        (b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n', OUT, OUT),
        (b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\ndata: {"error":{"message":"no"}}\n\n', OUT, OUT),
        (b'data: {"choices":[],"prompt_filter_results":[]}\n\ndata: {"error":{"code":502}}\n\n', OUT, OUT),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', PASSES, PASSES),
        (b'data: {"choices":[{"delta":{"content":null,"tool_calls":[]}}]}\n\ndata: [DONE]\n\n', PASSES, PASSES),
        (b'data: {"choices":[]}\n\ndata: [DONE]\n\n', PASSES, PASSES),
        (b'data: {"choices":null}\n\n', PASSES, PASSES),
        (b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n', SERVES, SERVES),
        (b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', SERVES, SERVES),
        (b'data: {"choices":[{"delta":{"reasoning_content":"so"}}]}\n\n', SERVES, SERVES),
        (b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', SERVES, SERVES),
        (b'data: {"choices":[{"text":"hello"}]}\n\n', SERVES, SERVES),
        (b'data: {"choices":[{"message":{"content":"hello"}}]}\n\n', SERVES, SERVES),
        (b'data: {"choices":[{"delta":"hello"}]}\n\n', SERVES, SERVES),
        (
            b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
            b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n',
            LATE_PROOF,
            LATE,
        ),
    ],
    ("messages", "streamed"): [
        (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n', OUT, OUT),
        (b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n', PASSES, PASSES),
        (b'data: {"type":"message_start"}\n\ndata: {"type":"ping"}\n\ndata: {"type":"error"}\n\n', OUT, OUT),
        (b'data: {"type":"message_start"}\n\ndata: {"type":"content_block_delta"}\n\n', SERVES, SERVES),
        (
            b'data: {"type":"content_block_delta"}\n\nevent: error\n'
            b'data: {"type":"error","error":{"type":"api_error"}}\n\n',
            LATE_PROOF,
            LATE,
        ),
    ],
    ("responses", "streamed"): [
        (b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n', OUT, OUT),
        (b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded"}}}\n\n', OUT, OUT),
        (b'data: {"type":"response.failed","response":{}}\n\n', OUT, OUT),
        (b"event: response.failed\ndata: {}\n\n", OUT, OUT),
        (b"event: response.failed\ndata: no\n\n", OUT, OUT),
        (b'data: {"type":"response.failed","response":{"error":{"code":"invalid_prompt"}}}\n\n', PASSES, PASSES),
        (b'data: {"type":"error","code":"rate_limit_exceeded","message":"slower","param":null}\n\n', OUT, OUT),
        (b'data: {"type":"error","code":null,"message":"no","param":"input"}\n\n', PASSES, PASSES),
        (b'data: {"type":"response.created"}\n\ndata: {"type":"response.in_progress"}\n\n', PASSES, PASSES),
        (b'data: {"type":"response.queued"}\n\n', PASSES, PASSES),
        (b'data: {"type":"response.created"}\n\ndata: {"type":"response.failed"}\n\n', OUT, OUT),
        (b'data: {"type":"response.created"}\n\ndata: {"type":"response.output_item.added"}\n\n', SERVES, SERVES),
        (
            b'data: {"type":"response.output_text.delta"}\n\n'
            b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n',
            LATE_PROOF,
            LATE,
        ),
    ],
}

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
TYPES = {"plain": b"application/json", "streamed": b"text/event-stream"}
OUTPUT = {
    ("chat", "plain"): b'{"model":"%s"}',
    ("messages", "plain"): b'{"model":"%s"}',
    ("responses", "plain"): b'{"model":"%s"}',
    ("chat", "streamed"): b'data: {"model":"%s","choices":[{"delta":{"content":"hello"}}]}\n\n',
    ("messages", "streamed"): (
        b'data: {"type":"message_start","message":{"model":"%s"}}\n\ndata: {"type":"content_block_delta"}\n\n'
    ),
    ("responses", "streamed"): (
        b'data: {"type":"response.created","response":{"model":"%s"}}\n\n'
        b'data: {"type":"response.output_text.delta"}\n\n'
    ),
}


class Given(NamedTuple):
    """An answer under a pin."""

    status: int
    body: bytes
    content_type: bytes


class Gateway:
    """Routes `auto` to one model, and gives the same answer to any other name: *given*, or output if that is None."""

    def __init__(self, api: str, manner: str) -> None:
        self.api, self.manner = api, manner
        self.routes_to = b"a"
        self.given: Given | None = None
        self.asked: list[str] = []
        self.credential = 0
        self.app = SessionPinMiddleware(self, config=Config(failover=Failover(give_up_after=2)))

    def output(self, model: bytes) -> Given:
        return Given(200, OUTPUT[self.api, self.manner] % model, TYPES[self.manner])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = asked_model(await read_body(receive))
        self.asked.append(model)
        given = self.output(self.routes_to) if model == "auto" else self.given or self.output(model.encode())
        await respond(send, given.body, status=given.status, headers=[(b"content-type", given.content_type)])

    async def ask(self, given: Given | None = None, session: bytes = b"1") -> Answer:
        """Send one request, to which *given* is the answer of a name other than `auto`."""
        self.given = given
        self.asked.clear()
        content = b'{"model":"auto","input":"hello","stream":%s}' % (b"true" if self.manner == "streamed" else b"false")
        headers = (b"x-session-id", session), (b"authorization", b"%d" % self.credential)
        return await call(self.app, content, *headers, path=PATHS[self.api])

    async def start(self, *, has_served: bool) -> None:
        """Forget all, pin a session to `a`, and route to `b` from now on."""
        self.credential += 1
        self.routes_to = b"a"
        for _ in range(2 if has_served else 1):
            await self.ask()
        self.routes_to = b"b"

    async def is_on(self, model: bytes) -> bool:
        return (await self.ask()).body == self.output(model).body

    async def refuses_a(self) -> bool:
        """Tell whether another session is not pinned to `a`, which the router chooses for it."""
        self.routes_to = b"a"
        return [(await self.ask(session=b"2")).pin_status for _ in range(2)] == ["miss", "miss"]


UNAVAILABLE = Given(503, b"", b"text/plain")
NO_METHOD = Given(405, b"", b"text/plain")  # a failure of a name that has never served, and of no other


async def observe(gateway: Gateway, given: Given, *, has_served: bool) -> Outcome | str:
    """Return what follows from an answer, or what the client got that is neither it nor the routed one."""
    await gateway.start(has_served=has_served)
    answer = await gateway.ask(given)
    routed = gateway.asked == ["a", "auto"]
    got = Given(answer.start["status"], answer.body, answer.headers["content-type"].encode())
    if got != (gateway.output(b"b") if routed else given) or answer.pin_status != ("reroute" if routed else "hit"):
        return f"{got} {answer.pin_status} {gateway.asked}"
    gives_up = answer.headers.get("x-session-model") != "a"
    if gives_up:
        return Outcome(routed, gives_up=await gateway.is_on(b"b"), refuses=await gateway.refuses_a())
    await gateway.ask(given)
    counts = not await gateway.is_on(b"a")
    proves = not routed and await (starts_again(gateway, given) if has_served else proves_a(gateway, given))
    return Outcome(routed, counts=counts, proves=proves)


async def starts_again(gateway: Gateway, given: Given) -> bool:
    """Tell whether the answer between two failures keeps them from being two in a row."""
    await gateway.start(has_served=True)
    for answer in (UNAVAILABLE, given, UNAVAILABLE):
        await gateway.ask(answer)
    return await gateway.is_on(b"a")


async def proves_a(gateway: Gateway, given: Given) -> bool:
    await gateway.start(has_served=False)
    await gateway.ask(given)
    return (await gateway.ask(NO_METHOD)).body != gateway.output(b"b").body


def cases(api: str, manner: str) -> Iterator[tuple[Given, Outcome, Outcome]]:
    for fact, rows in BY_STATUS.items():
        for text, unproven, proven in rows:
            for status in statuses(text):
                yield Given(status, ERRORS[api][fact], b"application/json"), unproven, proven
    for body, unproven, proven, *kind in [
        *(PLAIN_OF_ALL if manner == "plain" else STREAMED_OF_ALL),
        *SHAPES[api, manner],
    ]:
        yield Given(200, body, kind[0] if kind else TYPES[manner]), unproven, proven


@case(
    Section.FAILURE,
    "a refusal of the content (moderation, too long, an invalid tool or parameter), whatever its status",
    "as it is; neither a success nor a failure",
)
@pytest.mark.parametrize("has_served", [False, True], ids=["unproven", "proven"])
@pytest.mark.parametrize("manner", ["plain", "streamed"])
@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
async def test_each_answer_under_a_pin_has_its_outcome(api: str, manner: str, has_served: bool) -> None:
    gateway = Gateway(api, manner)
    wrong = [
        f"{given}: {observed}, not {expected}"
        for given, unproven, proven in cases(api, manner)
        if (observed := await observe(gateway, given, has_served=has_served))
        != (expected := proven if has_served else unproven)
    ]
    assert wrong == []


@case(Section.FAILURE, "streams that fail after their first output", "as they are; each counts as a failure in a row")
async def test_streams_that_fail_late_give_the_pin_up_in_the_end() -> None:
    late = Given(200, b'data: {"some":"thing"}\n\ndata: {"error":{"message":"no"}}\n\n', TYPES["streamed"])
    gateway = Gateway("chat", "streamed")
    await gateway.start(has_served=True)
    for _ in range(2):
        answer = await gateway.ask(late)
        assert (answer.pin_status, answer.body) == ("hit", late.body)
    assert await gateway.is_on(b"b")


def test_each_status_has_its_row_whatever_the_error_says() -> None:
    for rows in BY_STATUS.values():
        assert sorted(status for text, _, _ in rows for status in statuses(text)) == statuses(ALL)
