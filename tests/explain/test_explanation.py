"""`asgi-session-pin explain`: what it prints, and what it does not."""

import gzip
import io
import logging
from pathlib import Path

import pytest

from asgi_session_pin import Config
from asgi_session_pin.cli import main
from asgi_session_pin.explain import Explanation
from asgi_session_pin.explain.saved import SavedAnswer, SavedRequest

CURL = """curl http://localhost:8080/v1/chat/completions -H 'Authorization: Bearer sk-very-secret' \\
  -H 'X-Session-Id: my-own-session' -d '{"model": "auto", "stream": true, "metadata": {"session_id": "in-the-body"}}'
"""
ANSWER = "HTTP/1.1 200 OK\ncontent-type: application/json\n\n{}"
STREAM = 'data: {"choices": []}\n\ndata: {"model_used": "gpt-4o"}\n\n'


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.txt"
    path.write_text(CURL)
    return path


@pytest.fixture
def answer_file(tmp_path: Path) -> Path:
    return tmp_path / "answer.txt"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["explain", *map(str, arguments)])
    output = capsys.readouterr()
    assert output.err == ""
    for secret in ("sk-very-secret", "my-own-session", "in-the-body"):
        assert secret not in output.out
    return code, " ".join(output.out.split())


def test_a_pinned_request_is_told_step_by_step(
    request_file: Path, answer_file: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_file.write_text(ANSWER.replace("{}", '{"model": "gpt-4o"}'))
    file.write_text("decisions: {aliases: {gpt-*: openai/gpt-*}}")
    code, told = run(capsys, request_file, answer_file, "--config", file)
    assert code == 0
    for step in [
        "It is pinned: its session stays on 'openai/gpt-4o'.",
        "The request: POST /v1/chat/completions, asks for 'auto', streamed.",
        "Endpoint: '*/chat/completions'.",
        "Session: an id from header:x-session-id;",
        "a digest of the id, header:authorization and the model asked for, 'auto'.",
        "No pin yet: the app gets it as it came. X-Session-Pin-Status: miss.",
        "The answer: HTTP 200, which body:model says is of 'openai/gpt-4o'.",
        "The pin: 'openai/gpt-4o', until 600 s after its last use.",
        "The next request like it: the app gets model 'openai/gpt-4o'. X-Session-Pin-Status: hit.",
    ]:
        assert step in told
    assert "What changes that" not in told


def test_without_its_answer_the_request_alone_is_told(request_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, request_file)
    assert code == 0
    assert told.startswith("As far as the request goes, it is pinned: to what its answer names.")
    assert "Its answer is not given; a second file with it says whether it names a model." in told


def test_without_an_answer_one_is_made_up_that_names_a_model_at_each_source(
    request_file: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sources in ('["header:x-my-model"]', '["body:choices.0.model"]'):
        file.write_text(f"decisions: {{sources: {sources}}}")
        assert run(capsys, request_file, "--config", file)[0] == 0
    file.write_text("routing: {router_models: [auto, the-*]}")  # what such an answer names
    assert run(capsys, request_file, "--config", file)[0] == 1


def test_what_the_log_would_tell_is_told(
    request_file: Path, answer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("asgi_session_pin")
    before = (logger.level, logger.propagate, list(logger.handlers))
    answer_file.write_text(ANSWER)
    code, told = run(capsys, request_file, answer_file)
    assert code == 1
    assert "In the log: a response names no model where decisions.sources look for it" in told
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_member_of_an_event_can_be_a_source(
    request_file: Path, answer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_file.write_text(STREAM)
    code, told = run(capsys, request_file, answer_file)
    assert code == 1
    assert 'What changes that, tried on this request: + decisions: {sources: ["body:model_used", ' in told


def test_a_decision_endpoint_answers_from_the_pin(
    request_file: Path, answer_file: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request_file.write_text(CURL.replace("/v1/chat", "/routing/v1/chat"))
    answer_file.write_text('{"model": "gpt-4o"}')
    file.write_text("sessions: {pin_per: session, sources: ['preset:coding-agents']}\nresponse_headers: false")
    code, told = run(capsys, request_file, answer_file, "--config", file)
    assert code == 0
    assert "The next request like it: the app is not called." in told
    assert "Session: an id from header:x-session-id;" in told
    assert "header:authorization and any model." in told
    assert "X-Session-Pin-Status: not sent, since response_headers is false." in told


def test_a_request_that_names_no_model_is_told_so() -> None:
    request = SavedRequest("POST", "/v1/messages", [(b"x-session-id", b"s")], b"{}")
    answer = SavedAnswer(200, [(b"content-type", b"application/json")], b'{"model": "gpt-4o"}')
    explanation = Explanation(Config(), request, answer)
    assert explanation.is_pinned
    assert "names no model" in explanation.text(80)
    assert all(len(line) <= 80 for line in explanation.text(80).splitlines())


def test_a_request_that_is_compressed_is_explained_by_what_it_says() -> None:
    headers = [(b"x-session-id", b"s"), (b"content-encoding", b"gzip")]
    request = SavedRequest("POST", "/v1/messages", headers, gzip.compress(b'{"model": "auto"}'))
    answer = SavedAnswer(200, [(b"content-type", b"application/json")], b'{"model": "auto"}')
    told = Explanation(Config(), request, answer).text(100)
    assert "asks for 'auto'" in told
    assert "Its answer names the very model that it asks for" in told


def test_a_request_comes_from_the_standard_input_too(
    request_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(request_file.read_bytes())))
    assert run(capsys, "-")[0] == 0


def test_what_cannot_be_read_is_one_line_and_exit_2(
    request_file: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(tmp_path / "missing")])
    assert ended.value.code == 2
    assert "missing can't be read: No such file or directory" in capsys.readouterr().err.splitlines()[-1]
    file.write_text("stores: {}")
    assert main(["explain", str(request_file), "--config", str(file)]) == 2
    assert "stores: unknown key" in capsys.readouterr().err


def test_the_requests_way_does_not_import_it() -> None:
    package = Path(__file__).parents[2] / "asgi_session_pin"
    importing = [
        path.name
        for path in package.rglob("*.py")
        if "from .explain" in path.read_text() or "from ..explain" in path.read_text()
    ]
    assert importing == ["cli.py"]
