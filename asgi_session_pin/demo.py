"""The demo: an agent's five steps, twice, against a router behind the real middleware."""

import asyncio
import json
import sys
import textwrap
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .middleware import SessionPinMiddleware
from .terminal import Style, styled

PATH = "/routing/v1/chat/completions"
_SHOWN = 20  # characters of a prompt, so that a step fits into 80 columns
STEPS = (
    "Design a REST API schema for a task management app with users, projects and due dates.",
    "Analyze SQL vs NoSQL trade-offs for this system and explain which one fits.",
    "Write the SQLAlchemy database models for the schema.",
    "Review the API design for security vulnerabilities and assess their severity.",
    "Implement JWT authentication middleware for the API.",
)

CODE_GENERATION = ("code_generation", "anthropic/claude-sonnet-4-20250514")
COMPLEX_REASONING = ("complex_reasoning", "openai/gpt-4o")
_CODE_WORDS = ("write", "implement", "design", "schema", "models", "middleware", "function")
_REASONING_WORDS = ("analyze", "review", "compare", "explain", "assess", "trade-off", "security", "vulnerab")


async def router(scope: Scope, receive: Receive, send: Send) -> None:
    """A decision endpoint as an ASGI app: says by the prompt which model it would use; knows no sessions."""
    message = await receive()
    prompt = json.loads(message["body"])["messages"][-1]["content"].lower()
    code = sum(word in prompt for word in _CODE_WORDS)
    reasoning = sum(word in prompt for word in _REASONING_WORDS)
    route, model = CODE_GENERATION if code > reasoning else COMPLEX_REASONING
    body = json.dumps({"model": model, "route": route, "trace_id": uuid.uuid4().hex}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


def run_demo(app: ASGIApp = router) -> bool:
    """Print both runs and return whether they behaved; all that is said of models and pins comes from the answers."""
    pinned_app = SessionPinMiddleware(app)
    print("Run 1: WITHOUT Session Pinning")
    varied = _report_varied(asyncio.run(_ask_all(pinned_app, None)))
    session_id = str(uuid.uuid4())
    print(f"\nRun 2: WITH Session Pinning (X-Session-Id: {session_id[:9]}…)")
    return _report_pinned(asyncio.run(_ask_all(pinned_app, session_id))) and varied


def _report_varied(answers: list[dict[str, Any]]) -> bool:
    models = list(dict.fromkeys(answer["model"] for answer in answers))
    if len(models) > 1:
        print(styled(f"✗ Models varied: {', '.join(models)}", Style.BAD, sys.stdout))
        return True
    print(f"Unexpected: without a session every step went to {models[0]}")
    return False


def _report_pinned(answers: list[dict[str, Any]]) -> bool:
    models = list(dict.fromkeys(answer["model"] for answer in answers))
    if len(models) == 1 and [answer.get("pinned") for answer in answers] == [False] + [True] * (len(answers) - 1):
        print(styled(f"✓ All {len(answers)} steps routed to {models[0]}", Style.GOOD, sys.stdout))
        print("\nNext, in front of a gateway of your own (needs asgi-session-pin[gateway]):")
        print("  asgi-session-pin serve --upstream http://localhost:4000")
        return True
    print(f"Unexpected: with a session the steps went to {', '.join(models)}")
    return False


async def _ask_all(app: ASGIApp, session_id: str | None) -> list[dict[str, Any]]:
    answers = []
    for number, prompt in enumerate(STEPS, start=1):
        answer = await _ask(app, prompt, session_id)
        shown = textwrap.shorten(prompt, _SHOWN, placeholder="…", break_on_hyphens=False)
        pinned = f" (pinned={json.dumps(answer['pinned'])})" if "pinned" in answer else ""
        print(f"Step {number}: {shown} → {answer['model']}{pinned}")
        answers.append(answer)
    return answers


async def _ask(app: ASGIApp, prompt: str, session_id: str | None) -> dict[str, Any]:
    """Send one request straight into *app* and return the JSON object that it answers with."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if session_id is not None:
        headers.append((b"x-session-id", session_id.encode()))
    chunks: list[bytes] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        chunks.append(message.get("body", b""))

    await app({"type": "http", "method": "POST", "path": PATH, "headers": headers}, receive, send)
    answer: dict[str, Any] = json.loads(b"".join(chunks))
    return answer
