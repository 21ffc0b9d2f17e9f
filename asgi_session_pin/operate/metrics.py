"""Figures for Prometheus. Needs `pip install asgi-session-pin[metrics]`."""

import os
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import get_args

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .. import __version__
from ..events import Cause, PinEvent

MOST_MODELS = 100  # clients and upstreams choose names
OTHER = "other"
COUNT_SECONDS = 0.25  # what was counted is in other processes' answers that soon

_PREFIX = "session_pin_"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_STORE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_Plain = tuple[str, str | bytes, str | bytes | None, str | None]


class Metrics(Collector):
    """Counts events, in a registry of its own.

    `count` is a listener. Most of what it does is one addition: a quarter of a second of requests goes to
    `prometheus_client` together. Where that works for several processes (`PROMETHEUS_MULTIPROC_DIR`), the figures are
    those of all of them.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.pins: int | None = None
        """How many there are, as far as it is known."""
        self._pending: dict[_Plain, int] = {}
        self._loop: AbstractEventLoop | None = None
        self._folder = None if values.ValueClass is values.MutexValue else os.environ.get(_FOLDER)
        self._models = _Models(self._folder)
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            f"{_PREFIX}requests", "Requests with a session", ["endpoint", "status", "reason"], registry=registry
        )
        self._changes = Counter(f"{_PREFIX}changes", "Pins that came or went", ["cause"], registry=registry)
        self._model_requests = Counter(
            f"{_PREFIX}model_requests", "Requests by the model of their session", ["model", "pinned"], registry=registry
        )
        self._drift = Counter(
            f"{_PREFIX}drift", "Answers of another model than the pin's, of those that are compared", registry=registry
        )
        self._store = Histogram(
            f"{_PREFIX}store_seconds",
            "Calls of the pin store",
            ["operation", "outcome"],
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._waits = Histogram(
            f"{_PREFIX}decision_wait_seconds",
            "Waiting for another request's decision",
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            f"{_PREFIX}tokens",
            "Tokens that answers report; cached ones are input too",
            ["kind", "pinned"],
            registry=registry,
        )
        for cause in get_args(Cause):
            self._changes.labels(cause)  # zero is a figure, too

    def count(self, event: PinEvent) -> None:
        """Count a request."""
        self.count_plain(event.endpoint, event.status, event.reason, event.model)
        if event.changes or event.store_calls or event.drift or event.waited_seconds or event.tokens:
            self._count_more(event)

    def count_plain(self, endpoint: str, status: str | bytes, reason: str | bytes | None, model: str | None) -> None:
        """Count a request of which there is no more to tell."""
        pending, loop = self._pending, get_running_loop()
        if not pending or loop is not self._loop:
            self._loop = loop
            loop.call_later(COUNT_SECONDS, self.flush)
        plain = endpoint, status, reason, model
        pending[plain] = pending.get(plain, 0) + 1

    def count_change(self, cause: Cause) -> None:
        """Count a change of a pin that no request made."""
        self._changes.labels(cause).inc()

    def flush(self) -> None:
        """Let others see what was counted."""
        pending, self._pending = self._pending, {}
        for (endpoint, status, reason, model), number in pending.items():
            word = _text(status)
            self._requests.labels(endpoint, word, _text(reason or "")).inc(number)
            if model is not None:
                self._model_requests.labels(self._models.name(model), _word(word in ("hit", "wait"))).inc(number)

    def text(self) -> bytes:
        """Return the figures in Prometheus's text format. It may be called in a thread, after `flush`."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        """Return the figures."""
        build = GaugeMetricFamily(f"{_PREFIX}build_info", "The version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        if self.pins is not None:
            yield GaugeMetricFamily(f"{_PREFIX}pins", "Pins in the store", self.pins)
        source = self._registry if self._folder is None else MultiProcessCollector(None, self._folder)  # type: ignore[no-untyped-call]
        for metric in source.collect():
            if metric.name.startswith(_PREFIX):  # the folder may have those of the app, too
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
                yield metric

    def _count_more(self, event: PinEvent) -> None:
        for cause in event.changes:
            self._changes.labels(cause).inc()
        for call in event.store_calls:
            self._store.labels(call.operation, "failed" if call.failed else "ok").observe(call.seconds)
        if event.drift:
            self._drift.inc()
        if event.waited_seconds:
            self._waits.observe(event.waited_seconds)
        if event.tokens is not None:
            for kind, number in msgspec.structs.asdict(event.tokens).items():
                self._tokens.labels(kind, _word(event.pinned)).inc(number)


def share(folder: str, number: int) -> None:
    """Count, from now on, together with the processes that have the same *folder* and another *number*.

    A process that takes over the number of one that has ended goes on with its figures: the files do not pile up.
    """
    os.environ[_FOLDER] = folder
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class _Models:
    """The names that are told apart: the first ones that came, in all processes that have *folder*.

    Each is in a file of its own, with the next number; a file appears with its content, by a link, or not at all.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._names: dict[str, None] = {}

    def name(self, model: str) -> str:
        """Return a model's name, or `OTHER`."""
        while model not in self._names and len(self._names) < MOST_MODELS:
            self._names[model if self._folder is None else self._claim(self._folder, model)] = None
        return model if model in self._names else OTHER

    def _claim(self, folder: Path, model: str) -> str:
        """Return the name that has the next number, by now this one at the latest."""
        place = folder / f"{_PREFIX}model_{len(self._names)}"
        draft = folder / f"{_PREFIX}model_of_{os.getpid()}"
        draft.write_text(model)
        with suppress(FileExistsError):
            os.link(draft, place)
        draft.unlink()  # to write to it again would be to write to the other one
        return place.read_text()


def _text(word: str | bytes) -> str:
    return word if isinstance(word, str) else word.decode()


def _word(value: bool) -> str:
    return "true" if value else "false"
