"""The command `asgi-session-pin serve`."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from asgi_session_pin import __version__
from asgi_session_pin.cli import main
from behaviour_document import Section, case
from servers import PATIENCE, free_port, serve_app, serving, wait_until, workers_of


async def chat(request: Request) -> Response:
    model = (await request.json())["model"]
    return JSONResponse({"model": f"model-{time.monotonic()}" if model == "auto" else model})


async def slow(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(0.1)

    return StreamingResponse(events(), media_type="text/event-stream")


async def swallow(request: Request) -> Response:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size})


async def pour(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"data: " + b"x" * 1000 + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


UPSTREAM = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/slow", slow),
        Route("/swallow", swallow, methods=["POST"]),
        Route("/pour", pour),
    ]
)


@case(Section.GATEWAY, "SIGTERM", "streams that run are finished, if that takes no more than 25 s")
def test_it_pins_in_front_of_an_upstream_and_finishes_its_streams_when_it_is_stopped(tmp_path: Path) -> None:
    config = tmp_path / "session_pin.yaml"
    config.write_text("routing: {session_ttl_seconds: 60}")
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, "--config", str(config)) as (url, process):
        with httpx.Client(base_url=url, trust_env=False) as client:
            models = {
                client.post("/v1/chat/completions", json={"model": "auto"}, headers={"x-session-id": "s"}).json()[
                    "model"
                ]
                for _ in range(3)
            }
            assert len(models) == 1
            events = 0
            with client.stream("GET", "/slow") as response:
                for line in response.iter_lines():
                    if line:
                        events += 1
                    if events == 2:
                        process.send_signal(signal.SIGTERM)
            assert events == 10
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert lines == [
            f"asgi-session-pin {__version__} on {url}, 1 worker",
            f"  upstream  {upstream}, which answers",
            "  pins      memory:// for 60 s after their last use, at most 10,000",
            "  sessions  header:x-session-id",
            "  router    any model (routing.router_models names none)",
            f"  settings  {config}",
            "Next: send requests there in place of the upstream. Ctrl+C ends it.",
            "INFO: asgi_session_pin.serve: ready",
        ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_it_without_a_traceback(workers: str) -> None:
    command = [sys.executable, "-m", "asgi_session_pin", "serve", "--port", str(free_port()), "--workers", workers]
    with serve_app(UPSTREAM) as upstream:
        process = subprocess.Popen(
            [*command, "--upstream", upstream], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with process:
            assert process.stderr is not None
            assert any("ready" in line for line in process.stderr)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.stderr.read() == ""
        assert process.returncode == 0


def resident_megabytes(process: subprocess.Popen[str]) -> float:
    (worker,) = workers_of(process.pid)
    return int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * 4096 / 1e6


def test_large_bodies_and_long_streams_pass_with_flat_memory() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(1024):
            most.append(resident_megabytes(process))
            yield b"x" * 65_536

    most: list[float] = []
    with (
        serve_app(UPSTREAM) as upstream,
        serving("--upstream", upstream) as (url, process),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        client.post("/swallow", content=b"warm")
        before = resident_megabytes(process)
        headers = {"content-length": str(64 * 1024 * 1024)}
        assert client.post("/swallow", content=chunks(), headers=headers).json() == {"size": 64 * 1024 * 1024}
        size = 0
        with client.stream("GET", "/pour") as response:
            for chunk in response.iter_raw():
                size += len(chunk)
                most.append(resident_megabytes(process))
        assert size == 10_000 * 1008
        assert max(most) - before < 20


def test_several_workers_with_one_file_agree(tmp_path: Path) -> None:
    config = tmp_path / "session_pin.yaml"
    config.write_text(f"store: {{url: 'sqlite:///{tmp_path}/pins.db', timeout_seconds: 5}}")
    arguments = ["--config", str(config), "--workers", "2"]
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, *arguments) as (url, process):
        models = []
        for _ in range(20):  # each over a connection of its own, which any worker takes
            headers = {"x-session-id": "s", "connection": "close"}
            answer = httpx.post(
                f"{url}/v1/chat/completions", json={"model": "auto"}, headers=headers, trust_env=False, timeout=30
            )
            models.append(answer.json()["model"])
        assert len(set(models)) == 1
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        assert "WARNING" not in process.stderr.read()


def test_several_workers_on_memory_are_warned_of() -> None:
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, "--workers", "2") as (url, process):
        assert get(f"{url}/-/session-pin/healthz").text == "ok\n"
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        text = process.stderr.read()
        assert f"on {url}, 2 workers\n" in text
        assert text.count("WARNING: asgi_session_pin.serve: store.url is memory://") == 1


def get(url: str) -> httpx.Response:
    return httpx.get(url, headers={"connection": "close"}, trust_env=False, timeout=PATIENCE)


def wait_until_told(process: subprocess.Popen[str], text: str) -> None:
    told = process.stderr
    assert told is not None
    reader = threading.Thread(target=lambda: any(text in line for line in told))
    reader.start()
    reader.join(PATIENCE)
    assert not reader.is_alive()


@case(
    Section.GATEWAY,
    "SIGHUP",
    "new workers with the settings of the file as it is now; those that were there finish their streams, for an hour "
    "at most. With `memory://` the pins begin anew",
)
@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_brings_new_settings_and_ends_no_stream(workers: int, file: Path) -> None:
    file.write_text("admin: {path: /old}")
    arguments = ["--config", str(file), "--workers", str(workers)]
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, *arguments) as (url, process):
        wait_until(lambda: len(workers_of(process.pid)) == workers)
        before = workers_of(process.pid)
        with httpx.stream("GET", f"{url}/slow", trust_env=False, timeout=PATIENCE) as response:
            events = response.iter_lines()
            first = next(events)
            file.write_text("admin: {path: /new}")
            process.send_signal(signal.SIGHUP)
            assert [first, *filter(None, events)] == [f"data: {number}" for number in range(10)]
        wait_until(lambda: not before & workers_of(process.pid))
        assert [get(f"{url}/{path}/healthz").status_code for path in ("new", "old")] == [200, 404]

        file.write_text("admin: {path: 1}")
        process.send_signal(signal.SIGHUP)
        after = workers_of(process.pid)
        for worker in after:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: len(workers_of(process.pid) - after) == workers)
        assert get(f"{url}/new/healthz").status_code == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        text = process.stderr.read()
        assert f"the settings stay as they are: {file}: 1 fault\n  admin.path: found 1" in text
        assert text.count("a worker ended by itself") == workers


def test_settings_from_a_pipe_are_those_of_all_workers_and_stay(file: Path) -> None:
    os.mkfifo(file)
    writer = threading.Thread(target=lambda: file.write_text("admin: {path: /piped}"))
    writer.start()
    arguments = ["--upstream", "http://127.0.0.1:9", "--workers", "2", "--config", str(file)]
    with serving(*arguments) as (url, process):
        writer.join(PATIENCE)
        process.send_signal(signal.SIGHUP)
        wait_until_told(process, "found what can be read only once, expected a regular file")
        assert [get(f"{url}/piped/healthz").status_code for _ in range(8)] == [200] * 8


def test_workers_end_with_the_process_over_them() -> None:
    with serving("--upstream", "http://127.0.0.1:9") as (_, process):
        workers = workers_of(process.pid)
        process.kill()
        process.wait(PATIENCE)
        wait_until(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers))


@case(
    Section.GATEWAY,
    "trailers, and an offer to upgrade to another protocol",
    "the trailers are dropped, the offer is ignored, and the body arrives whole",
)
@pytest.mark.parametrize(
    "offer", [b"", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"]
)
def test_a_body_arrives_whole_and_its_trailers_are_no_headers(offer: bytes) -> None:
    async def echo(request: Request) -> Response:
        return JSONResponse({"body": (await request.body()).decode(), "headers": dict(request.headers)})

    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n" + offer
    with (
        serve_app(Starlette(routes=[Route("/echo", echo, methods=["POST"])])) as upstream,
        serving("--upstream", upstream) as (url, _),
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENCE) as client,
    ):
        client.sendall(head + b"\r\n4\r\nbody\r\n0\r\nX-Trailer: 1\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"body":"body"' in answer
    assert b"x-trailer" not in answer


@case(Section.GATEWAY, "a status that has no name, up to 999", "goes through")
@case(Section.GATEWAY, "an HTTP/1.0 client", "gets no chunks: the answer ends with the connection")
@case(Section.GATEWAY, "a client's connection is idle", "it is kept for `gateway.client_keepalive_seconds`")
def test_what_the_server_does_for_an_upstreams_answers(file: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        names = [name.decode() for name, _ in scope["headers"]]
        await send({"type": "http.response.body", "body": json.dumps(names).encode()})

    def ask(url: str, request: bytes) -> tuple[bytes, float]:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENCE) as client:
            client.sendall(request)
            began, answer = time.monotonic(), b"".join(iter(lambda: client.recv(65_536), b""))
            return answer, time.monotonic() - began

    file.write_text("gateway: {client_keepalive_seconds: 0.5}")
    with serve_app(app) as upstream, serving("--upstream", upstream, "--config", str(file)) as (url, _):
        answer, _ = ask(url, b"GET / HTTP/1.0\r\nX-Session-Model: forged\r\nX_Session_Pinned: true\r\n\r\n")
        assert answer.endswith(b'\r\n\r\n["host", "x-forwarded-for", "x-forwarded-proto"]')
        assert b"chunked" not in answer
        _, seconds = ask(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert 0.4 < seconds < 4, "uvicorn's own default is 5"
    head = b"HTTP/1.1 777 Lucky\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with serving("--upstream", f"http://127.0.0.1:{port}") as (url, _), ThreadPoolExecutor(1) as pool:
            listener.accept()[0].close()  # it looked whether anybody answers
            asking = pool.submit(httpx.get, url, trust_env=False, timeout=PATIENCE)
            with listener.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(head)
                assert asking.result(PATIENCE).status_code == 777


@case(Section.GATEWAY, "SIGTERM, and a websocket is open", "it is closed with 1012 at once: its client may come again")
def test_websockets_are_closed_when_it_is_stopped() -> None:
    async def wait(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()

    upstream_app = Starlette(routes=[WebSocketRoute("/", wait)])
    with serve_app(upstream_app, ws="websockets-sansio") as upstream, serving("--upstream", upstream) as (url, process):
        with connect(url.replace("http", "ws"), proxy=None) as client:
            process.terminate()
            with pytest.raises(ConnectionClosed) as raised:
                client.recv(timeout=PATIENCE)
        process.communicate(timeout=PATIENCE)
    assert raised.value.rcvd is not None
    assert raised.value.rcvd.code == 1012


def test_it_forwards_websockets_and_has_nothing_of_them_in_its_log() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for message in websocket.iter_text():
            await websocket.send_text(message)

    secret = "secret-" + "x" * 2**24
    upstream_app = Starlette(routes=[WebSocketRoute("/v1/realtime", echo)])
    with serve_app(upstream_app, ws="websockets-sansio", ws_max_size=2**25) as upstream:
        with serving("--upstream", upstream, "--log-level", "debug") as (url, process):
            address = f"{url.replace('http', 'ws')}/v1/realtime?key=secret"
            headers = {"x-api-key": "secret"}
            with connect(address, additional_headers=headers, max_size=None, proxy=None) as client:
                assert client.response is not None
                assert "sec-websocket-extensions" not in client.response.headers
                message = secret[: 2**24]
                client.send(message)
                assert client.recv() == message
        _, log = process.communicate(timeout=PATIENCE)
    assert "secret" not in log


@case(Section.GATEWAY, "SIGHUP, with `--ssl-certfile`", "new workers read the certificate and its key again")
def test_it_speaks_tls_and_takes_a_new_certificate(tmp_path: Path) -> None:
    def renew() -> str:
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(both)
        issued.private_key_pem.write_to_path(key)
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()).hex()

    def shown(url: str) -> str:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with (
            socket.create_connection(address, PATIENCE) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(b"GET /-/session-pin/healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert client.recv(13) == b"HTTP/1.1 200 "
            return (client.getpeercert(binary_form=True) or b"").hex()

    authority, both, key = trustme.CA(), str(tmp_path / "both.pem"), str(tmp_path / "key.pem")
    first = renew()
    options = ["--ssl-certfile", both, "--ssl-keyfile", key]
    with serving("--upstream", "http://127.0.0.1:9", *options) as (url, process):
        assert shown(url) == first
        second = renew()
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: shown(url) == second)
        Path(both).write_text("no certificate")
        process.send_signal(signal.SIGHUP)
        wait_until_told(process, "  ssl-certfile: found ")
        wait_until(lambda: shown(url) == second)  # an old worker may have taken one connection more


@case(Section.GATEWAY, "`--uds`", "it listens on that socket file, which is gone when it ends")
def test_it_listens_on_a_socket_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def headers(request: Request) -> Response:
        return JSONResponse(dict(request.headers))

    monkeypatch.chdir(tmp_path)
    with serve_app(Starlette(routes=[Route("/headers", headers)])) as upstream:
        command = [sys.executable, "-m", "asgi_session_pin", "serve", "--upstream", upstream, "--uds", "pin.sock"]
        with (
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
            httpx.Client(transport=httpx.HTTPTransport(uds="pin.sock"), timeout=PATIENCE) as client,
        ):
            wait_until(Path("pin.sock").exists)
            for _ in range(2):
                told = client.get("http://a/headers", headers={"x-forwarded-for": "1.1.1.1"}).json()
                assert {name for name in told if name.startswith("x-forw")} == {"x-forwarded-proto", "x-forwarded-host"}
            second = subprocess.run(command, capture_output=True, text=True, check=False)
            assert second.returncode == 1
            assert "can't listen on pin.sock: another server listens there" in second.stderr
            process.terminate()
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert " on unix:pin.sock, 1 worker\n" in process.stderr.read()
    assert not Path("pin.sock").exists()


def test_all_that_is_logged_is_of_one_format() -> None:
    options = ["--workers", "2", "--log-format", "json", "--access-log"]
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, *options) as (url, process):
        headers = {"x-session-id": "secret", "authorization": "Bearer secret"}
        answer = httpx.post(
            f"{url}/v1/chat/completions?key=secret", json={"model": "auto"}, headers=headers, trust_env=False
        )
        assert answer.status_code == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        text = process.stderr.read()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["logger"] for line in lines} == {"asgi_session_pin.serve", "asgi_session_pin.access"}
    assert (lines[0]["version"], lines[0]["pins"].split()[0]) == (__version__, "memory://")
    (access,) = (line for line in lines if line["logger"] == "asgi_session_pin.access")
    assert (access["method"], access["path"], access["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (access["client"], access["pin"]) == ("127.0.0.1", "miss")
    assert "secret" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: --upstream"),
        (["--upstream", "localhost:1"], "argument --upstream: expected a URL such as http://localhost:4000"),
        (
            ["--upstream", "http://a", "--port", "0"],
            "argument --port: found '0', expected a whole number from 1 to",
        ),
        (
            ["--upstream", "http://a", "--port", "x"],
            "argument --port: found 'x', expected a whole number from 1 to",
        ),
        (["--upstream", "http://a", "--workers", "-1"], "argument --workers: "),
        (["--upstream", "http://a", "--ssl-keyfile", "k"], "argument --ssl-keyfile: found no ssl-certfile"),
        (["--upstream", "http://a", "--ssl-certfile", "/none"], "argument --ssl-certfile: found /none, which can't be"),
        (
            ["--upstream", "http://a", "--log-level", "loud"],
            "argument --log-level: found 'loud', expected one of",
        ),
    ],
)
def test_wrong_arguments_are_one_clear_line_and_exit_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ASGI_SESSION_PIN_UPSTREAM", "localhost:1")
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "error: ASGI_SESSION_PIN_UPSTREAM: expected a URL such as" in capsys.readouterr().err


def test_a_system_without_socket_files_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("socket.AF_UNIX")
    with pytest.raises(SystemExit):
        main(["serve", "--upstream", "http://a", "--uds", "pin.sock"])
    assert "argument --uds: this system has no such sockets" in capsys.readouterr().err


def test_a_configuration_that_cannot_be_used_ends_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("routing: {session_ttl_seconds: 0}")
    assert main(["serve", "--upstream", "http://127.0.0.1:9", "--config", str(config)]) == 1
    assert "routing.session_ttl_seconds: found 0" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_clear_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--upstream", "http://127.0.0.1:9", "--port", str(port)]) == 1
    assert f"can't listen on 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err


def test_without_the_extra_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("serve", "server_protocol", "silent_clients", "supervisor", "worker"):
        monkeypatch.delitem(sys.modules, f"asgi_session_pin.gateway.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--upstream", "http://127.0.0.1:9"])
    assert ended.value.code == 2
    assert "install asgi-session-pin[gateway]" in capsys.readouterr().err
