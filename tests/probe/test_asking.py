"""What the probe sends, and what it makes of gateways that do not behave."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from asgi_session_pin.cli import main
from asgi_session_pin.probe import read_target
from asgi_session_pin.probe.asking import NoAnswer, Prober
from asgi_session_pin.request.session import PRESETS
from fake_gateways import Answer, FakeGateway, litellm, plain_router
from servers import free_port, serve_app

KEY = "sk-0123456789abcdef"


def run(url: str, *arguments: str) -> int:
    return main(
        ["probe", "--upstream", url, "--path", "/v1/chat/completions", "--verbose", "--model", "auto", *arguments]
    )


def serving(respond: Callable[[Request], Response]) -> FakeGateway:
    """A gateway that answers whatever *respond* makes."""

    class Odd(FakeGateway):
        async def _answer(self, request: Request) -> Response:
            self.bodies.append(json.loads(await request.body() or b"{}"))
            return respond(request)

    return Odd(plain_router)


def read_request(connection: socket.socket) -> None:
    """Read a whole request: what is left unread would reset the connection at its end."""
    length = 0
    with connection.makefile("rb") as file:
        while (line := file.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        file.read(length)


@contextmanager
def raw_server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that reads each request and lets *answer* do the rest."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(20)
                try:
                    read_request(connection)
                    answer(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


def test_requests_are_tiny_fresh_and_without_a_session() -> None:
    gateway = FakeGateway(plain_router)
    with serve_app(gateway) as url:
        assert run(f"{url}/", "--key", KEY, "--header", "X-Team:  blue ") == 0
    sessions = {source.removeprefix("header:") for source in PRESETS["preset:coding-agents"]}
    for headers in gateway.headers:
        assert not sessions & set(headers)
        assert headers["accept-encoding"] == "identity"
        assert (headers["authorization"], headers["x-team"]) == (f"Bearer {KEY}", "blue")
        assert "x-api-key" not in headers
    prompts = [body["messages"][0]["content"] for body in gateway.bodies]
    assert len(set(prompts)) == len(prompts) == 15
    assert {body["max_tokens"] for body in gateway.bodies} == {16}
    assert [(body["model"], body["stream"]) for body in gateway.bodies[:6]] == [("auto", False)] * 3 + [
        ("auto", True)
    ] * 3


def test_the_path_is_below_the_base_path_and_the_key_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    gateway = FakeGateway(litellm)
    with serve_app(gateway) as url:
        arguments = ["--path", "/api/v1/messages", "--key-env", "GATEWAY_KEY", "--model", "smart"]
        assert main(["probe", "--upstream", f"{url}/base/", *arguments]) == 1
    assert "LiteLLM's /model/info, which says" in capsys.readouterr().out
    assert {path for method, path in gateway.requests if method == "POST"} == {"/base/api/v1/messages"}
    lists = [path for method, path in gateway.requests if method == "GET"]
    assert lists == ["/base/api/v1/models", "/base/model/info", "/base/v1/model/info"]
    assert all(headers["x-api-key"] == KEY for headers in gateway.headers)


def test_secrets_never_show_where_the_gateway_echoes_them(capsys: pytest.CaptureFixture[str]) -> None:
    def respond(request: Request) -> Response:
        key = request.headers["authorization"].removeprefix("Bearer ")
        cookie = request.headers["cookie"]
        echoed = {"x-model": f"model-{key}", "x-model-cookie": cookie.partition("=")[2], f"x-model-{key}": "gpt"}
        model = gateway.bodies[-1]["model"]
        if model != "auto":
            return JSONResponse({"error": {"message": key, "code": key}}, 400, echoed)
        return JSONResponse({"model": "gpt-4o", "model_key": key, f"model_{key}": "x"}, headers=echoed)

    gateway = serving(respond)
    for arguments in ([], ["--json"]):
        with serve_app(gateway) as url:
            assert run(url, "--key", KEY, "--header", "Cookie: session=hunter2-hunter2", *arguments) == 1
        output = capsys.readouterr()
        assert "gpt-4o" in output.out
        for secret in (KEY, "hunter2", "model_key", "x-model-cookie"):
            assert secret not in output.out + output.err


def test_it_needs_no_extra() -> None:
    script = (
        "import sys; sys.modules['uvicorn'] = sys.modules['brotli'] = None; from asgi_session_pin.cli import main; "
    )
    script += "sys.exit(main(['probe', '--upstream', 'http://127.0.0.1:9', '--model', 'auto']))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1] == (
        "asgi-session-pin probe: error: http://127.0.0.1:9/v1/chat/completions: Connection refused"
    )


def test_a_model_that_wants_another_limit_of_tokens_gets_it() -> None:
    def respond(request: Request) -> Response:
        body = gateway.bodies[-1]
        if "max_tokens" in body:
            return JSONResponse({"error": {"code": "unsupported_parameter", "param": "max_tokens"}}, 400)
        if body["model"] not in ("auto", "gpt"):
            return JSONResponse({"error": {"code": "unsupported_parameter"}}, 400)
        return JSONResponse({"model": "gpt"})

    gateway = serving(respond)
    with serve_app(gateway) as url:
        assert run(url) == 0
    asked = [body for body in gateway.bodies if body]
    assert [body.get("max_tokens") for body in asked] == [16] + [None] * 11
    assert [body.get("max_completion_tokens") for body in asked] == [None] + [16] * 11


def refusing(status: int) -> FakeGateway:
    return FakeGateway(lambda asked: Answer("", status=status))


def test_a_wrong_key_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = refusing(401)
    with serve_app(gateway) as url:
        assert run(url, "--json") == 2
    output = capsys.readouterr()
    assert len(gateway.requests) == 1
    assert output.out == ""
    assert "the first request got HTTP 401 (model_not_found); is the key right" in output.err


def test_a_redirect_is_told_and_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = serving(lambda request: RedirectResponse("https://elsewhere.test/login?state=hunter2"))
    with serve_app(gateway) as url:
        assert run(url) == 2
    assert len(gateway.requests) == 1
    told = "HTTP 307, a redirect to 'https://elsewhere.test/login', which is not followed\n"
    assert capsys.readouterr().err.endswith(told)


def test_names_that_are_never_served_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = refusing(404)
    with serve_app(gateway) as url:
        assert run(url) == 2
    assert len(gateway.requests) == 6
    told = "no request was served: HTTP 404 (model_not_found); are --upstream, --path, --model and the key right?\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(("status", "hint"), [(403, "; is the key right, and allowed to use this model?"), (429, "\n")])
def test_what_to_look_at_depends_on_the_status(status: int, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_app(refusing(status)) as url:
        assert run(url) == 2
    assert f"no request was served: HTTP {status} (model_not_found){hint}" in capsys.readouterr().err


def test_an_error_in_an_answer_is_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_app(serving(lambda request: JSONResponse({"error": {"code": "500", "type": "out"}}))) as url:
        assert run(url) == 2
    assert "no request was served: HTTP 200 with an error (out)" in capsys.readouterr().err


ODD_ANSWERS: dict[str, tuple[Callable[[], Response], str]] = {
    "HTML": (lambda: PlainTextResponse("<html>", media_type="text/html"), "neither JSON nor events"),
    "no JSON": (lambda: PlainTextResponse("oops", media_type="application/json"), "no JSON object"),
    "a list": (lambda: JSONResponse(["gpt"]), "no JSON object"),
    "huge": (lambda: JSONResponse({"text": "x" * 1_000_000, "model": "gpt"}), "larger than 256 KiB"),
    "endless comments": (lambda: endless(b": ping\n\n" * 100), "names no model in its first 256 KiB"),
    "odd coding": (
        lambda: JSONResponse({"model": "gpt"}, headers={"content-encoding": "rot13"}),
        "neither JSON nor events",
    ),
    "broken coding": (
        lambda: JSONResponse({"model": "gpt"}, headers={"content-encoding": "gzip"}),
        "can't be decoded, or is too large",
    ),
}
NAMELESS_ANSWERS: dict[str, Callable[[], Response]] = {
    "endless": lambda: endless(b"data: {}\n\n"),
    "numbers": lambda: JSONResponse({"model": 7, "model_used": "1.5"}, headers={"x-model": "http://a"}),
}


def endless(piece: bytes) -> Response:
    def pieces() -> Iterator[bytes]:
        while True:
            yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


@pytest.mark.parametrize("kind", ODD_ANSWERS)
def test_answers_that_cannot_be_read_prove_nothing(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, remark = ODD_ANSWERS[kind]
    gateway = serving(lambda request: make())
    with serve_app(gateway) as url:
        assert run(url) == 2
    assert len(gateway.requests) == 6
    told = f"error: no answer could be read: HTTP 200 ({remark}); are --upstream and --path right?\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("kind", NAMELESS_ANSWERS)
def test_answers_that_name_nothing_are_bounded(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make = NAMELESS_ANSWERS[kind]
    gateway = serving(lambda request: make() if request.method == "POST" else Response(status_code=404))
    with serve_app(gateway) as url:
        assert run(url) == 1
    assert "'auto', asked for: 6 of 6 served\n" in capsys.readouterr().out


def test_a_compressed_answer_is_read_though_none_was_asked_for() -> None:
    class Compressing(FakeGateway):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await GZipMiddleware(super().__call__, minimum_size=1)(
                {**scope, "headers": [*scope.get("headers", []), (b"accept-encoding", b"gzip")]}, receive, send
            )

    with serve_app(Compressing(plain_router)) as url:
        assert run(url) == 0


def test_an_answer_that_is_no_http_is_told_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with raw_server(lambda connection: connection.sendall(b"hunter2\r\n\r\n")) as url:
        assert run(url) == 2
    error = capsys.readouterr().err
    assert error.endswith(": the answer is no HTTP\n")
    assert "hunter2" not in error


def dribble(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.05)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"]
)
def test_no_answer_takes_longer_than_the_limit(head: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        dribble(connection)

    started = time.monotonic()
    with raw_server(answer) as url:
        assert run(url, "--timeout", "0.3") == 2
    assert time.monotonic() - started < 5
    assert capsys.readouterr().err.endswith(": no whole answer within 0.3 s\n")


def test_a_gateway_that_falls_silent_is_given_up_after_three_times(capsys: pytest.CaptureFixture[str]) -> None:
    answers = 0
    body = b'{"model":"gpt"}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)

    def answer(connection: socket.socket) -> None:
        nonlocal answers
        answers += 1
        if answers % 2:
            connection.sendall(head + body)

    with raw_server(answer) as url:
        assert run(url) == 2
    assert answers == 6
    assert capsys.readouterr().err.endswith(": the connection was closed without an answer\n")


def test_a_silence_now_and_then_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    HEADERS = [(b"content-length", b"5"), (b"content-type", b"application/json")]

    class Stumbling(FakeGateway):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if len(self.requests) != 1:
                return await super().__call__(scope, receive, send)
            self.requests.append(("", ""))
            await Request(scope, receive).body()
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionError

    with serve_app(Stumbling(plain_router)) as url:
        assert run(url) == 0
    assert "5 of 6 served; plain: the answer broke off" in capsys.readouterr().out


def prober(url: str, limit: int = 2) -> Prober:
    return Prober(read_target(url, "/v1/chat/completions", None, [], 5), limit)


async def test_never_more_requests_are_sent_than_announced() -> None:
    gateway = FakeGateway(plain_router)
    with serve_app(gateway) as url:
        bounded = prober(url, 2)
        await bounded.ask("auto", hard=False, stream=False)
        assert await bounded.get("/v1/models") == b""
        with pytest.raises(RuntimeError, match="2 requests were announced"):
            await bounded.ask("auto", hard=False, stream=False)
    assert len(gateway.requests) == 2


async def test_a_list_that_is_too_long_or_never_comes_is_none() -> None:
    gateway = serving(lambda request: endless(b"x" * 65_536))
    with serve_app(gateway) as url:
        assert await prober(url).get("/v1/models") == b""
    assert await prober(f"http://127.0.0.1:{free_port()}").get("/v1/models") == b""


UNREACHABLE = {
    "http://127.0.0.1:9": "Connection refused",
    "http://localhost:9": "Connection refused",
    "http://nowhere.invalid": r"[Nn]ame",
    "http://999.1.1.1": "it is no address",
}


@pytest.mark.parametrize("url", UNREACHABLE)
async def test_it_is_told_why_a_gateway_cannot_be_reached(url: str) -> None:
    with pytest.raises(NoAnswer, match=UNREACHABLE[url]):
        await prober(url).ask("auto", hard=False, stream=False)


async def test_each_address_of_a_host_is_tried_and_one_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the machine's own `localhost` has one address alone."""

    async def addresses(*_: object, **__: object) -> list[object]:
        both = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2")]
        return [(family, socket.SOCK_STREAM, 6, "", (address, 9)) for family, address in both]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    with pytest.raises(NoAnswer, match="Connection refused"):
        await prober("http://gateway.test:9").ask("auto", hard=False, stream=False)
