"""The process over the workers of `serve`, which are real ones here."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from asgi_session_pin import Config
from asgi_session_pin.cli import main
from asgi_session_pin.config import Admin
from asgi_session_pin.gateway.listeners import bind
from asgi_session_pin.gateway.logs import Logs
from asgi_session_pin.gateway.supervisor import Supervisor
from asgi_session_pin.gateway.worker import READY, Certificate, Limits, Order, Service, run_worker
from behaviour_document import Section, case
from servers import PATIENCE, free_port, is_open, serve_app, wait_until, wait_until_open, workers_of

NOWHERE = "http://127.0.0.1:9"
GOOD = Service(NOWHERE, Config(), Logs())
NEW = Service(NOWHERE, Config(admin=Admin(path="/new")), Logs())
BROKEN = Service("no URL", Config(), Logs())  # no worker can serve it
UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Session-Id: s\r\nContent-Length: 100\r\n\r\n{"


@pytest.fixture(autouse=True)
def _signals_hurt_nobody() -> Iterator[None]:
    """Those that come when nothing is left to end."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def supervise(
    client: Callable[[int], Any],
    service: Service = GOOD,
    following: Callable[[], Service] = lambda: replace(GOOD),
    limits: Limits | None = None,
    count: int = 1,
) -> int:
    """Supervise in this process, as only its first thread gets signals, until *client* is done with the port."""

    port = free_port()
    return run_beside(client, port, Supervisor(service, count, bind("127.0.0.1", port), following, limits).run)


def run_beside(client: Callable[[int], Any], port: int, serve: Callable[[], int]) -> int:
    def run_client() -> None:
        try:
            wait_until_open(port)
            client(port)
        finally:
            send(signal.SIGTERM)
            while not ended.wait(1):  # where the client failed before anybody heeds signals
                send(signal.SIGTERM)

    ended = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_client)
        try:
            exit_code = serve()
        finally:
            ended.set()
        running.result(PATIENCE)
    assert workers() == set()
    return exit_code


def workers() -> set[int]:
    return workers_of(os.getpid())


def get(port: int, path: str = "/-/session-pin/healthz") -> int:
    url = f"http://127.0.0.1:{port}{path}"
    return httpx.get(url, headers={"connection": "close"}, trust_env=False, timeout=PATIENCE).status_code


@contextlib.contextmanager
def hanging_upload(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(UPLOAD)
        assert get(port) == 200  # it is read by now
        yield client


async def endless(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: x\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(events(), media_type="text/event-stream")


ENDLESS = Starlette(routes=[Route("/endless", endless)])


def read_until_cut(port: int, then: Callable[[], object]) -> None:
    """Read a stream until it breaks off; do *then* after its first event."""
    with httpx.stream("GET", f"http://127.0.0.1:{port}/endless", trust_env=False, timeout=PATIENCE) as response:
        events = response.iter_raw()
        next(events)
        then()
        with pytest.raises(httpx.RemoteProtocolError):
            list(events)


def test_the_limits_leave_nobody_in_30_seconds() -> None:
    assert Limits().uploads < Limits().streams < Limits().stop < 30


@case(Section.GATEWAY, "a worker dies", "another one takes its place, with the settings that hold")
def test_a_worker_that_dies_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    def client(port: int) -> None:
        assert get(port) == 200
        wait_until(lambda: len(workers()) == 2)
        before = workers()
        send(signal.SIGHUP)  # which waits until both serve, and brings two that certainly do
        wait_until(lambda: len(workers()) == 2 and not workers() & before)
        killed = workers().pop()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(workers() - {killed}) == 2)
        assert get(port) == 200

    assert supervise(client, count=2) == 0
    assert "a worker ended by itself, with exit code -9" in caplog.text


OBSERVED = Service(NOWHERE, Config(admin=Admin(token="0123456789abcdef")), Logs())


@case(
    Section.OPERATORS, "`metrics` of several workers", "any of them tells the figures of all, also of those that ended"
)
def test_workers_count_together_and_those_that_ended_count_too() -> None:
    def ask(port: int) -> None:
        headers = {"x-session-id": "s", "connection": "close"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert httpx.post(url, json={"model": "auto"}, headers=headers, trust_env=False).status_code == 502

    def requests(port: int) -> list[str]:
        headers = {"authorization": "Bearer 0123456789abcdef", "connection": "close"}
        answer = httpx.get(f"http://127.0.0.1:{port}/-/session-pin/metrics", headers=headers, trust_env=False)
        return [line for line in answer.text.splitlines() if line.startswith("session_pin_requests_total")]

    def told(number: int) -> list[str]:
        labels = 'endpoint="*/chat/completions",reason="",status="miss"'
        return [f"session_pin_requests_total{{{labels}}} {number}.0"]

    def client(port: int) -> None:
        wait_until(lambda: len(workers()) == 2)
        for _ in range(8):
            ask(port)
        wait_until(lambda: [requests(port) for _ in range(4)] == [told(8)] * 4)
        before = workers()
        send(signal.SIGHUP)
        wait_until(lambda: len(workers()) == 2 and not workers() & before)
        ask(port)
        wait_until(lambda: [requests(port) for _ in range(4)] == [told(9)] * 4)

    assert supervise(client, OBSERVED, lambda: replace(OBSERVED), count=2) == 0


def test_without_room_for_figures_each_worker_counts_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory.__init__", refuse)
    assert supervise(lambda port: get(port)) == 0
    assert "each worker counts alone: no temporary folder can be made: No space left on device" in caplog.text


def test_workers_that_cannot_start_end_it_at_once() -> None:
    assert supervise_until_it_ends(BROKEN) == 1


def supervise_until_it_ends(service: Service) -> int:
    return Supervisor(service, 1, bind("127.0.0.1", free_port()), lambda: service).run()


def test_processes_that_cannot_be_made_end_it_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(process: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    assert supervise_until_it_ends(GOOD) == 1
    assert "a worker can't be started: Resource temporarily unavailable" in caplog.text


def test_processes_that_cannot_be_made_for_a_while_are_made_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(process: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def client(port: int) -> None:
        send(signal.SIGHUP)
        wait_until(lambda: "new" in told)
        (worker,) = workers()
        with monkeypatch.context() as patched:
            patched.setattr("multiprocessing.context.SpawnProcess.start", refuse)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: "a worker can't be started" in caplog.text)
        assert get(port) == 200

    def following() -> Service:
        told.append("new")
        raise ValueError

    told: list[str] = []
    assert supervise(client, following=following) == 0
    assert "the settings stay as they are: ValueError" in caplog.text


@case(
    Section.GATEWAY,
    "SIGHUP, and the file is bad or workers can't start with it",
    "nothing changes, and the log says why",
)
def test_what_cannot_start_leaves_those_that_serve(caplog: pytest.LogCaptureFixture) -> None:
    def client(port: int) -> None:
        worker = workers().pop()
        send(signal.SIGHUP)
        wait_until(lambda: "the settings stay as they are: workers with the new ones can't start" in caplog.text)
        wait_until(lambda: len(workers()) == 2 and worker in workers())
        assert get(port) == 200

    assert supervise(client, following=lambda: BROKEN, count=2) == 0


def test_the_command_reads_its_file_again(
    file: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def client(port: int) -> None:
        file.write_text("admin: {path: /new}")
        send(signal.SIGHUP)
        wait_until(lambda: [get(port, "/new/healthz") for _ in range(8)] == [200] * 8)
        file.unlink()
        send(signal.SIGHUP)
        wait_until(lambda: "can't be read: No such file or directory" in caplog.text)
        os.mkfifo(file)
        send(signal.SIGHUP)
        wait_until(lambda: "found what can be read only once, expected a regular file" in caplog.text)
        assert get(port, "/new/healthz") == 200

    file.touch()
    caplog.set_level("INFO")
    port = free_port()
    command = ["serve", "--upstream", NOWHERE, "--port", str(port), "--config", str(file), "--workers", "2"]
    assert run_beside(client, port, lambda: main(command)) == 0
    assert capsys.readouterr().err.count(f" on http://127.0.0.1:{port}, 2 workers\n") == 2
    told = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert [line for line in told if line in ("ready", "the new settings hold")] == ["ready", "the new settings hold"]


def test_retired_workers_end_in_time() -> None:
    def client(port: int) -> None:
        read_until_cut(port, lambda: send(signal.SIGHUP))

    with serve_app(ENDLESS) as upstream:
        service = Service(upstream, Config(), Logs())
        assert supervise(client, service, lambda: NEW, Limits(retired=0.2, streams=0.2)) == 0


def test_the_next_settings_end_those_that_are_retired() -> None:
    def client(port: int) -> None:
        read_until_cut(port, lambda: threads.submit(reload_twice, port))

    def reload_twice(port: int) -> None:
        (before,) = workers()
        send(signal.SIGHUP)
        wait_until(lambda: get(port, "/new/healthz") == 200 and get(port, "/new/healthz") == 200)
        wait_until(lambda: len(workers()) == 2)
        send(signal.SIGHUP)
        wait_until(lambda: before not in workers())

    with ThreadPoolExecutor(1) as threads, serve_app(ENDLESS) as upstream:
        service = Service(upstream, Config(), Logs())
        assert supervise(client, service, lambda: NEW, Limits(streams=0.2)) == 0


@case(
    Section.GATEWAY,
    "SIGTERM, and an upload hangs",
    "it is cut after 10 s, and no process is left after 30 s, whatever hangs",
)
def test_sigterm_waits_for_no_upload_and_for_no_endless_stream() -> None:
    def client(port: int) -> None:
        with hanging_upload(port) as uploading:
            read_until_cut(port, lambda: send(signal.SIGTERM))
            assert uploading.recv(1) == b""
        assert not is_open(port)

    with serve_app(ENDLESS) as upstream:
        service = Service(upstream, Config(), Logs())
        assert supervise(client, service, limits=Limits(uploads=0.2, streams=0.6)) == 0


def test_a_worker_that_does_not_heed_is_killed() -> None:
    def client(port: int) -> None:
        (worker,) = workers()
        os.kill(worker, signal.SIGSTOP)

    assert supervise(client, limits=Limits(stop=0.2)) == 0


def test_ctrl_c_twice_waits_for_nobody() -> None:
    def client(port: int) -> None:
        with hanging_upload(port):
            send(signal.SIGINT)
            wait_until(lambda: not is_open(port))
            send(signal.SIGINT)
            wait_until(lambda: not workers())

    assert supervise(client) == 0


def lead(
    supervisor: Callable[["Connection[Order, object]", int], Any], service: Service = GOOD, limits: Limits | None = None
) -> None:
    """Run a worker in this process, and *supervisor* beside it."""
    ours, its_end = Pipe()
    (listener,) = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with ThreadPoolExecutor(1) as threads, ours, its_end:
        running = threads.submit(supervisor, ours, port)
        run_worker(service, limits or Limits(), [listener], its_end)
        running.result(PATIENCE)
    assert not is_open(port)


def wait_until_ready(worker: "Connection[Order, object]") -> None:
    assert worker.poll(PATIENCE)
    assert worker.recv() == READY


def test_a_worker_says_when_it_serves_and_ends_when_it_is_told() -> None:
    def supervisor(worker: "Connection[Order, object]", port: int) -> None:
        wait_until_ready(worker)
        assert get(port) == 200
        worker.send(Order.STOP)

    lead(supervisor)


def test_a_worker_whose_supervisor_is_gone_ends() -> None:
    lead(lambda worker, port: worker.close())


def test_a_retired_worker_serves_whom_it_has_and_nobody_else() -> None:
    def supervisor(worker: "Connection[Order, object]", port: int) -> None:
        wait_until_ready(worker)
        with hanging_upload(port) as uploading:
            worker.send(Order.RETIRE)
            wait_until(lambda: not is_open(port))
            uploading.sendall(b"x" * 99)
            assert uploading.recv(13) == b"HTTP/1.1 502 "

    lead(supervisor)


@case(
    Section.GATEWAY,
    "SIGHUP, and a client that is in its TLS handshake",
    "the old worker goes on with it for five seconds, and answers its request",
)
def test_a_retired_worker_goes_on_with_handshakes(tmp_path: Path) -> None:
    def supervisor(worker: "Connection[Order, object]", port: int) -> None:
        wait_until_ready(worker)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            client.sendall(outgoing.read())
            incoming.write(client.recv(65536))
            worker.send(Order.RETIRE)
            wait_until(lambda: not is_open(port))
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):  # nothing comes, nor does it end
                client.recv(1)
            client.settimeout(PATIENCE)
            tls.do_handshake()
            tls.write(b"GET /-/session-pin/healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            client.sendall(outgoing.read())
            received = b""
            while not received:
                assert incoming.write(client.recv(65536)) > 0
                with contextlib.suppress(ssl.SSLWantReadError):  # tickets of TLS 1.3 come first
                    received = tls.read(13)
            assert received == b"HTTP/1.1 200 "

    authority, both = trustme.CA(), tmp_path / "both.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(both))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    lead(supervisor, replace(GOOD, certificate=Certificate(str(both))), Limits(handshakes=2))


def test_a_worker_cuts_uploads_that_hang_before_streams() -> None:
    def supervisor(worker: "Connection[Order, object]", port: int) -> None:
        wait_until_ready(worker)
        with hanging_upload(port) as uploading, socket.create_connection(("127.0.0.1", port), PATIENCE) as streaming:
            streaming.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            assert streaming.recv(13) == b"HTTP/1.1 200 "
            worker.send(Order.STOP)
            assert uploading.recv(1) == b""
            assert streaming.recv(1) != b""

    with serve_app(ENDLESS) as upstream:
        lead(supervisor, Service(upstream, Config(), Logs()), Limits(uploads=0.2, streams=1))
