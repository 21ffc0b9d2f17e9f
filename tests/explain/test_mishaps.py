"""Why does it not pin? The mishaps of docs/debugging.md: what `explain` says of each, and the log at DEBUG."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asgi_session_pin import Config
from asgi_session_pin.explain import Explanation
from asgi_session_pin.explain.saved import Headers, SavedAnswer, SavedRequest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
CHAT = "/v1/chat/completions"
JSON: Headers = [(b"content-type", b"application/json")]


def asked(
    *headers: tuple[str, str],
    path: str = "/v1/chat/completions",
    method: str = "POST",
    body: bytes | None = None,
    **members: Any,
) -> SavedRequest:
    """A request of the session `abcdef-session` for `auto`, but for what is said."""
    content = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], **members}
    session = [] if any("session" in name.lower() for name, _ in headers) else [("x-session-id", "abcdef-session")]
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in (*session, *headers) if value != "-"]
    return SavedRequest(method, path, pairs, json.dumps(content).encode() if body is None else body)


def answered(model: Any = "gpt-4o", status: int = 200, headers: Headers = JSON, **members: Any) -> SavedAnswer:
    named = {} if model is None else {"model": model}
    return SavedAnswer(status, headers, json.dumps({"id": "1", "choices": [], **named, **members}).encode())


class Mishap(NamedTuple):
    """A request that is not pinned, or not as it was meant.

    - `says`: a sentence of the verdict, or of what is told instead of advice; `sets`: the setting that changes it.
    """

    request: SavedRequest
    says: str
    sets: str = ""
    answer: SavedAnswer | None = answered()
    settings: dict[str, Any] | None = None


AUTO = {"routing": {"router_models": ["auto"]}}
LITELLM: Headers = [*JSON, (b"x-litellm-call-id", b"1"), (b"x-litellm-model-name", b"openai/gpt-4o")]
NOT_THERE = "has no session id: header:x-session-id is not there."
NO_PATH = "Its path is none of the endpoints."
UNUSABLE = "session id can't be used"

MISHAPS = {
    "a GET": Mishap(asked(method="GET"), "Only POST requests are, and this is a GET."),
    "another path": Mishap(asked(path="/api/chat"), NO_PATH, 'path: "/api/chat"'),
    "an embedding": Mishap(
        asked(path="/v1/embeddings"), "Its path is none of the endpoints.", 'path: "/v1/embeddings"'
    ),
    "a path with the model in it": Mishap(
        asked(path="/openai/deployments/gpt/chat/completions"),
        "has kind: ignore: '*/deployments/*'.",
        'path: "/openai/deployments/gpt/chat/completions"',
    ),
    "another application's /responses": Mishap(
        asked(path="/v1/responses"), "so it is taken for another application's.", 'path: "/v1/responses"'
    ),
    "no session id": Mishap(asked(("x-session-id", "-"), ("authorization", "Bearer sk-1")), NOT_THERE, '"fingerprint"'),
    "X-SessionId": Mishap(asked(("X-SessionId", "abcdef-1")), NOT_THERE, '"header:x-sessionid"'),
    "X_Session_Id": Mishap(asked(("X_Session_Id", "abcdef-1")), NOT_THERE, '"header:x_session_id"'),
    "the header of a coding agent": Mishap(
        asked(("x-claude-code-session-id", "abcdef-1")), NOT_THERE, '"preset:coding-agents"'
    ),
    "a header of one's own": Mishap(
        asked(("x-conversation-session", "abcdef-1")), NOT_THERE, '"header:x-conversation-session"'
    ),
    "the id in the body": Mishap(
        asked(("x-session-id", "-"), metadata={"session_id": "abcdef-1"}), NOT_THERE, '"body:metadata.session_id"'
    ),
    "the key of the prompt cache": Mishap(
        asked(("x-session-id", "-"), prompt_cache_key="abcdef-1"), NOT_THERE, '"preset:body-ids"'
    ),
    "an empty id": Mishap(asked(("x-session-id", " ")), UNUSABLE),
    "an id that was never filled in": Mishap(asked(("x-session-id", "undefined")), UNUSABLE),
    "an id that is too long": Mishap(asked(("x-session-id", "a" * 300)), UNUSABLE, "1024"),
    "an id with a control character": Mishap(asked(("x-session-id", "abc\x01def")), UNUSABLE),
    "two ids": Mishap(asked(("x-session-id", "abcdef-1"), ("x-session-id", "abcdef-2")), UNUSABLE),
    "X-Session-Pin: off": Mishap(
        asked(("x-session-id", "abcdef-1"), ("X-Session-Pin", "off")), "The client asked for that: X-Session-Pin: off."
    ),
    "X-Session-Pin: reset each time": Mishap(
        asked(("x-session-id", "abcdef-1"), ("X-Session-Pin", "reset")),
        "each request with X-Session-Pin: reset is routed afresh",
    ),
    "a body that is no JSON": Mishap(asked(body=b"model=auto"), "Its body is no JSON object in UTF-8"),
    "a body that is a list": Mishap(asked(body=b"[]"), "Its body is no JSON object in UTF-8"),
    "a body that is too large": Mishap(
        asked(padding="x" * 100),
        "Its body is larger than limits.max_request_bytes.",
        "256",
        settings={"limits": {"max_request_bytes": 100}},
    ),
    "a coding that nobody knows": Mishap(asked(("content-encoding", "rot13")), "a content-encoding that can't be read"),
    "a signed body": Mishap(asked(("content-digest", "sha-256=:x:")), "Its body is signed"),
    "a model of its own": Mishap(
        asked(model="gpt-4o"),
        "a model that routing.router_models does not name",
        '"gpt-4o"',
        answered("gpt-4o-2024-08-06x"),
        AUTO,
    ),
    "an error": Mishap(asked(), "Its answer is no 2xx", answer=answered(status=500)),
    "an error with status 200": Mishap(
        asked(), "is an error, whatever the status", answer=answered(error={"message": "x"})
    ),
    "an answer that names nothing": Mishap(
        asked(), "names no model where decisions.sources look.", answer=answered(None)
    ),
    "a header that nobody looks at": Mishap(
        asked(),
        "names no model where decisions.sources look",
        '"header:x-chosen-model"',
        answered(None, headers=[*JSON, (b"x-chosen-model", b"gpt-4o")]),
    ),
    "a member that nobody looks at": Mishap(
        asked(), "names no model where decisions.sources look", '"body:model_used"', answered(None, model_used="gpt-4o")
    ),
    "a name with blanks": Mishap(asked(), "can't be sent as a model", answer=answered("Llama 3 8B")),
    "an answer in the router's name": Mishap(
        asked(), "or routing.router_models or routing.retired_models lists it", answer=answered("auto"), settings=AUTO
    ),
    "an answer of a retired model": Mishap(
        asked(), "or routing.retired_models lists it", settings={"routing": {"retired_models": ["gpt-4o"]}}
    ),
    "an answer under the name asked for": Mishap(
        asked(), "names the very model that it asks for, so the pin changes nothing.", answer=answered("auto")
    ),
    "LiteLLM, which hides its choice": Mishap(
        asked(),
        "names the very model that it asks for",
        '"header:x-litellm-model-name"',
        answered("auto", headers=LITELLM),
    ),
    "the gateway's own fallback": Mishap(
        asked(),
        "its own fallback answered",
        answer=answered(headers=[*LITELLM, (b"x-litellm-attempted-fallbacks", b"1")]),
    ),
    "an answer that a rule leaves out": Mishap(
        asked(),
        "A rule of decisions.unless says that",
        answer=answered(headers=[*JSON, (b"x-cause", b"housekeeping")]),
        settings={"decisions": {"unless": {"header:x-cause": ["housekeeping"]}}},
    ),
    "an answer that is no JSON": Mishap(
        asked(),
        "because of its content type or coding",
        answer=SavedAnswer(200, [(b"content-type", b"text/html")], b"<p>"),
    ),
    "an answer in a coding that nobody knows": Mishap(
        asked(),
        "because of its content type or coding",
        answer=answered(headers=[*JSON, (b"content-encoding", b"rot13")]),
    ),
}


def explained(mishap: Mishap) -> Explanation:
    return Explanation(Config.load(mishap.settings), mishap.request, mishap.answer)


def row(name: str) -> str:
    """Return the line of the document."""
    explanation = explained(MISHAPS[name])
    what = explanation.elsewhere
    if explanation.advice:
        section, setting = re.findall(r"^(\w+): (?:\{(\w+))?", explanation.advice[0])[0]
        what = f"`{section}{f'.{setting}' if setting else ''}`: `{MISHAPS[name].sets}`"
    return f"| {name} | {explanation.verdict.removeprefix('It is not pinned. ')} | {what} |"


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", MISHAPS)
def test_each_mishap_has_its_sentence_and_the_setting_that_changes_it(name: str) -> None:
    mishap = MISHAPS[name]
    explanation = explained(mishap)
    told = words(explanation.text(80))
    assert mishap.says in told
    assert "abcdef" not in told
    if mishap.sets:
        assert mishap.sets in told
        assert "What changes that, tried on this request: +" in told
    else:
        assert explanation.advice == []
    if name != "X-Session-Pin: reset each time":
        assert told.startswith("It is not pinned. ")
        assert not explanation.is_pinned


def test_the_document_has_each_mishap_in_the_words_of_the_command() -> None:
    rows = DOCUMENT.partition("## What it says, and what changes that")[2].splitlines()
    assert [line for line in rows if line.startswith("| ")][2:] == [row(name) for name in MISHAPS]
