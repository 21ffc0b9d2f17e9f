"""The process over the workers of `asgi-session-pin serve`, which replaces those that die and takes new settings."""

import contextlib
import itertools
import logging
import math
import multiprocessing
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import Enum
from multiprocessing.connection import wait

from ..config import ConfigError
from .worker import READY, Limits, Order, Service, run_worker

logger = logging.getLogger("asgi_session_pin.serve")

_spawn = multiprocessing.get_context("spawn")
_RELOAD = getattr(signal, "SIGHUP", None)  # Windows has none
_SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, _RELOAD) if number is not None]
_LOOK_SECONDS = 1  # how often is looked for what is overdue
_REPLACE_SECONDS = 1  # a worker that ends by itself is replaced after this long, so that it can't go round and round


class State(Enum):
    """What a worker does."""

    STARTING = "starting"
    SERVING = "serving"
    RETIRED = "finishes what it has"
    STOPPING = "has to end"


class _Worker:
    """A process, and what it was told last."""

    def __init__(
        self, service: Service, limits: Limits, sockets: list[socket.socket], figures: str | None, number: int
    ) -> None:
        self.service = service
        self.number = number
        self._limits = limits
        self.pipe, its_end = _spawn.Pipe()
        with its_end:
            arguments = (service, limits, sockets, its_end, figures, number)
            self.process = _spawn.Process(target=run_worker, args=arguments, daemon=True)
            self.process.start()
        self._enter(State.STARTING, limits.start)

    @property
    def is_wanted(self) -> bool:
        """Whether it serves, or is about to."""
        return self.state in (State.STARTING, State.SERVING)

    @property
    def is_overdue(self) -> bool:
        """Whether it is longer in its state than it may."""
        return time.monotonic() > self._deadline

    def learn(self) -> None:
        """Take note of what it said."""
        with contextlib.suppress(EOFError, OSError):  # it died, as the process tells
            if self.pipe.poll() and self.pipe.recv() == READY and self.state is State.STARTING:
                self._enter(State.SERVING, math.inf)

    def dismiss(self) -> None:
        """Let it finish what it has, or else end."""
        if self.state is State.SERVING:
            self._tell(Order.RETIRE)
            self._enter(State.RETIRED, self._limits.retired)
        else:
            self.stop()

    def stop(self) -> None:
        """Tell it to end."""
        if self.state is not State.STOPPING:
            self._tell(Order.STOP)
            self._enter(State.STOPPING, self._limits.stop)

    def close(self) -> None:
        """Let go of a process that has ended."""
        self.pipe.close()
        self.process.close()

    def _tell(self, order: Order) -> None:
        with contextlib.suppress(OSError):  # it died, as the process tells
            self.pipe.send(order)

    def _enter(self, state: State, seconds: float) -> None:
        self.state = state
        self._deadline = time.monotonic() + seconds


class Supervisor:
    """Keeps *count* workers on *sockets*, which it closes at the end.

    SIGTERM and SIGINT end them within 30 seconds. SIGHUP asks *read_service* for what to serve from now on: new workers
    serve it, and once they do, the others finish what they have. If it raises or they don't start, all stays as it is.
    """

    def __init__(
        self,
        service: Service,
        count: int,
        sockets: list[socket.socket],
        read_service: Callable[[], Service],
        limits: Limits | None = None,
    ) -> None:
        self._count = count
        self._sockets = sockets
        self._read_service = read_service
        self._limits = limits or Limits()
        self._current: Service | None = None
        self._incoming: Service | None = service  # becomes the current one when all its workers serve
        self._workers: list[_Worker] = []
        self._signals: set[int] = set()  # still to be followed
        self._replace_after = 0.0
        self._exit_code = 0
        self._figures: str | None = None  # the folder in which the workers count together

    def run(self) -> int:
        """Serve until a signal ends it and return 0, or 1 if the workers can't start."""
        with _caught_signals() as caught, _folder_of_figures() as self._figures:
            self._start_missing()
            while self._workers or self._current is not None:
                ends = [end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)]
                wait([caught, *ends], _LOOK_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    self._signals.update(caught.recv(4096))
                self._follow_signals()
                for worker in list(self._workers):
                    self._look_after(worker)
                self._change_over()
                self._start_missing()
        return self._exit_code

    def _follow_signals(self) -> None:
        if self._signals & {signal.SIGINT, signal.SIGTERM}:
            is_urgent = signal.SIGINT in self._signals and self._current is self._incoming is None
            self._signals.clear()
            self._stop()
            if is_urgent:  # Ctrl+C once more
                for worker in self._workers:
                    worker.process.kill()
        elif self._signals and self._current is not None and self._incoming is None:
            self._signals.clear()
            try:
                self._incoming = self._read_service()
            except Exception as error:  # those that serve have what they need
                reason = error if isinstance(error, ConfigError) else type(error).__name__
                logger.error("the settings stay as they are: %s", reason)

    def _look_after(self, worker: _Worker) -> None:
        worker.learn()
        if not worker.process.is_alive():
            self._workers.remove(worker)
            if worker.is_wanted:
                self._on_unexpected_end(worker)
            worker.close()
        elif worker.is_overdue:
            if worker.state is State.RETIRED:
                worker.stop()
            else:
                worker.process.kill()

    def _on_unexpected_end(self, worker: _Worker) -> None:
        logger.error("a worker ended by itself, with exit code %s", worker.process.exitcode)
        self._replace_after = time.monotonic() + _REPLACE_SECONDS
        if worker.service is self._incoming and worker.state is State.STARTING:
            self._refuse_incoming()

    def _refuse_incoming(self) -> None:
        refused, self._incoming = self._incoming, None
        if self._current is None:
            self._exit_code = 1
            return self._stop()
        logger.error("the settings stay as they are: workers with the new ones can't start")
        for worker in self._workers:
            if worker.service is refused:
                worker.dismiss()
        return None

    def _change_over(self) -> None:
        """Retire the others, when all workers serve what is new."""
        serving = [worker.service for worker in self._workers if worker.state is State.SERVING]
        if self._incoming is None or serving.count(self._incoming) < self._count:
            return
        logger.info("ready" if self._current is None else "the new settings hold")
        self._current, self._incoming = self._incoming, None
        for worker in self._workers:
            if worker.service is not self._current:
                worker.dismiss()

    def _start_missing(self) -> None:
        if time.monotonic() < self._replace_after:
            return
        for service in (self._current, self._incoming):
            if service is not None:
                there = sum(worker.service is service and worker.is_wanted for worker in self._workers)
                self._start(service, self._count - there)

    def _start(self, service: Service, count: int) -> None:
        try:
            for _ in range(count):
                taken = {worker.number for worker in self._workers}
                number = next(number for number in itertools.count() if number not in taken)
                self._workers.append(_Worker(service, self._limits, self._sockets, self._figures, number))
        except OSError as error:
            logger.error("a worker can't be started: %s", error.strerror)
            self._replace_after = time.monotonic() + _REPLACE_SECONDS
            if service is self._incoming:
                self._refuse_incoming()

    def _stop(self) -> None:
        self._current = self._incoming = None
        for listener in self._sockets:  # whoever connects from now on is refused
            listener.close()
        for worker in self._workers:
            worker.stop()


@contextlib.contextmanager
def _folder_of_figures() -> Iterator[str | None]:
    """Yield a new folder, which is gone at the end; None where there is no room for one."""
    with contextlib.ExitStack() as stack:
        folder = None
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="asgi-session-pin-"))
        except OSError as error:
            logger.warning("each worker counts alone: no temporary folder can be made: %s", error.strerror)
        yield folder


@contextlib.contextmanager
def _caught_signals() -> Iterator[socket.socket]:
    """Yield where the numbers of the signals that arrive can be read."""
    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        try:
            yield reading
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
