"""The examples, served by uvicorn and driven by the real OpenAI SDK."""

import importlib.util
import json
import re
import subprocess
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from openai import NotFoundError, OpenAI

from asgi_session_pin import SessionPinMiddleware
from asgi_session_pin.cli import main
from asgi_session_pin.demo import STEPS
from servers import free_port, serve_app, serve_script, serving

FASTAPI_PROXY = Path(__file__).parent.parent / "examples" / "fastapi_proxy.py"
CLAUDE = "anthropic/claude-sonnet-4-20250514"
GPT = "openai/gpt-4o"


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with serve_script(FASTAPI_PROXY) as url, OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client


def ask(client: OpenAI, prompt: str, session_id: str | None, stream: bool, model: str = "auto") -> tuple[str, str]:
    """Return the model that the answer names and its text, having checked that they agree."""
    headers = {"X-Session-Id": session_id} if session_id else {}
    if not stream:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], extra_headers=headers
        )
        return answer.model, answer.choices[0].message.content or ""
    chunks = list(
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], extra_headers=headers, stream=True
        )
    )
    [name] = {chunk.model for chunk in chunks}
    return name, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_five_steps_change_models_without_a_session_and_stay_on_one_with_it(client: OpenAI, stream: bool) -> None:
    without = [ask(client, step, None, stream) for step in STEPS]
    assert [model for model, _ in without] == [CLAUDE, GPT, CLAUDE, GPT, CLAUDE]
    session_id = str(uuid.uuid4())
    pinned = [ask(client, step, session_id, stream) for step in STEPS]
    assert pinned == [(CLAUDE, f"Hello from {CLAUDE}.")] * 5
    other = str(uuid.uuid4())
    assert [ask(client, step, other, stream)[0] for step in STEPS[1:]] == [GPT] * 4


def test_plain_and_streamed_requests_share_a_pin_and_a_named_model_is_the_clients_choice(client: OpenAI) -> None:
    session_id = str(uuid.uuid4())
    assert ask(client, STEPS[0], session_id, stream=True)[0] == CLAUDE
    assert ask(client, STEPS[1], session_id, stream=False)[0] == CLAUDE
    assert ask(client, STEPS[0], session_id, stream=False, model=GPT)[0] == GPT
    with pytest.raises(NotFoundError, match="does not exist"):
        ask(client, STEPS[0], session_id, stream=False, model="gpt-9")


def test_the_client_can_see_what_happened(client: OpenAI) -> None:
    session_id = str(uuid.uuid4())
    for status in ("miss", "hit"):
        raw = client.chat.completions.with_raw_response.create(
            model="auto",
            messages=[{"role": "user", "content": STEPS[1]}],
            extra_headers={"X-Session-Id": session_id},
        )
        assert raw.headers["x-session-pin-status"] == status
        assert raw.headers["x-session-pinned"] == ("true" if status == "hit" else "false")
    assert raw.headers["x-session-model"] == GPT


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The example as a module whose answers are the same each time."""
    spec = importlib.util.spec_from_file_location("fastapi_proxy", FASTAPI_PROXY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "uuid", types.SimpleNamespace(uuid4=lambda: uuid.UUID(int=1)))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(time=lambda: 1.0))
    return module


@pytest.mark.parametrize("stream", [False, True])
def test_an_answers_bytes_are_those_without_the_middleware(example: types.ModuleType, stream: bool) -> None:
    bare = FastAPI(routes=example.app.routes)
    request = {"model": "auto", "stream": stream, "messages": [{"role": "user", "content": STEPS[0]}]}
    with serve_app(bare) as bare_url, serve_app(SessionPinMiddleware(bare)) as url:
        expected = httpx.post(f"{bare_url}/v1/chat/completions", json=request)
        for status in ("miss", "hit"):
            answer = httpx.post(f"{url}/v1/chat/completions", json=request, headers={"x-session-id": "s"})
            assert answer.headers["x-session-pin-status"] == status
            assert answer.content == expected.content
            assert len(expected.content) > 200
            same = [header for header in answer.headers.raw if not header[0].startswith((b"x-session-", b"date"))]
            assert same == [header for header in expected.headers.raw if header[0] != b"date"]


@pytest.mark.parametrize("names", [["auto"], ["auto", GPT]], ids=["router", "router and model"])
def test_the_settings_that_the_probe_prints_pin_it_from_in_front(
    example: types.ModuleType,
    names: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[str] = []
    provider_message = example.provider_message

    def record(model: str, *rest: object) -> object:
        served.append(model)
        return provider_message(model, *rest)

    monkeypatch.setattr(example, "provider_message", record)
    found = tmp_path / "found.yaml"
    with serve_app(FastAPI(routes=example.app.routes)) as upstream:
        assert main(["probe", "--upstream", upstream, "--json", "--model", *names]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["settings"] == ({} if names == ["auto"] else {"routing": {"router_models": ["auto"]}})
        found.write_text(report["yaml"])
        with (
            serving("--upstream", upstream, "--config", str(found)) as (url, _),
            OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        ):
            for stream in (False, True):
                for session_id, models in ((None, [CLAUDE, GPT, CLAUDE]), (f"session-{stream}", [CLAUDE] * 3)):
                    served.clear()
                    assert [ask(client, step, session_id, stream)[0] for step in STEPS[:3]] == models
                    assert served == models


def test_the_research_agent_keeps_its_model_with_a_session_and_changes_it_without(client: OpenAI) -> None:
    script = FASTAPI_PROXY.with_name("research_agent.py")
    command = [sys.executable, str(script), str(client.base_url)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    assert lines[0] == "without X-Session-Id"
    assert re.fullmatch(r"X-Session-Id: [0-9a-f-]{36}", lines[7])
    turns = [f"  {kind}, turn {turn}: " for kind in ("plain", "streamed") for turn in (1, 2, 3)]
    assert lines[1:7] == [turn + model for turn, model in zip(turns, [CLAUDE, GPT, CLAUDE] * 2, strict=True)]
    assert lines[8:] == [turn + CLAUDE for turn in turns]


BAD_PROXY = """
from fastapi import FastAPI
from asgi_session_pin import Config, SessionPinMiddleware

app = FastAPI()
app.add_middleware(SessionPinMiddleware, config=%s)
"""


@pytest.mark.parametrize(
    ("config", "arguments"),
    [('Config.load("bad.yaml")', []), ('"bad.yaml"', ["--lifespan", "on"])],
)
def test_uvicorn_ends_at_start_for_a_bad_file(tmp_path: Path, config: str, arguments: list[str]) -> None:
    (tmp_path / "proxy.py").write_text(BAD_PROXY % config)
    (tmp_path / "bad.yaml").write_text("routing: {session_ttl_second: 5}")
    command = [sys.executable, "-m", "uvicorn", "proxy:app", "--port", str(free_port()), *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode != 0
    assert "unknown key, did you mean 'session_ttl_seconds'?" in ended.stderr
