"""The figures for Prometheus."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from asgi_driver import SESSION, Clock, Gateway, answer_json, call
from asgi_session_pin import Config, PinEvent, SessionPinMiddleware, StoreCall, Tokens
from asgi_session_pin.config import Admin
from asgi_session_pin.operate.admin import create_admin
from asgi_session_pin.operate.metrics import MOST_MODELS, Metrics, share

AUTO = {"model": "auto"}
ENDPOINT = "*/chat/completions"


def figures(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what Prometheus reads: for each series its values by the labels' values."""
    metrics.flush()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def event(**fields: Any) -> PinEvent:
    return PinEvent(**{"status": "hit", "reason": None, "endpoint": ENDPOINT, "model": "a", "pinned": True, **fields})


async def counted(events: Iterable[PinEvent]) -> dict[str, dict[tuple[str, ...], float]]:
    metrics = Metrics()
    for each in events:
        metrics.count(each)
    return figures(metrics)


async def test_each_request_counts_by_endpoint_status_and_reason() -> None:
    metrics = Metrics()
    app = SessionPinMiddleware(Gateway("a"), listeners=[metrics.count])
    for _ in range(3):
        await call(app, AUTO, SESSION)
    await call(app, b"{", SESSION)
    await call(app, AUTO, (b"x-no-session", b"1"))
    found = figures(metrics)
    assert found["session_pin_requests_total"] == {
        (ENDPOINT, "", "miss"): 1,
        (ENDPOINT, "", "hit"): 2,
        (ENDPOINT, "body-not-json", "ignored"): 1,
    }
    assert found["session_pin_model_requests_total"] == {("a", "false"): 1, ("a", "true"): 2}


async def test_the_series_are_those_that_are_documented() -> None:
    metrics = Metrics()
    metrics.pins = 3
    metrics.count(
        event(
            drift=True,
            waited_seconds=0.2,
            store_calls=(StoreCall("get", 0.002, False), StoreCall("add", 0.1, True)),
            tokens=Tokens(100, 64, 7),
            changes=("made",),
        )
    )
    found = figures(metrics)
    assert sorted(name for name in found if not name.endswith(("_bucket", "_sum"))) == [
        "session_pin_build_info",
        "session_pin_changes_total",
        "session_pin_decision_wait_seconds_count",
        "session_pin_drift_total",
        "session_pin_model_requests_total",
        "session_pin_pins",
        "session_pin_requests_total",
        "session_pin_store_seconds_count",
        "session_pin_tokens_total",
    ]
    assert found["session_pin_pins"] == {(): 3}
    assert found["session_pin_drift_total"] == {(): 1}
    assert found["session_pin_decision_wait_seconds_sum"] == {(): 0.2}
    assert found["session_pin_store_seconds_sum"] == {("get", "ok"): 0.002, ("add", "failed"): 0.1}
    tokens = {("input", "true"): 100, ("cached", "true"): 64, ("output", "true"): 7}
    assert found["session_pin_tokens_total"] == tokens


async def test_changes_begin_with_zero_and_those_of_no_request_count_too() -> None:
    metrics = Metrics()
    metrics.count(event(changes=("refused", "made")))
    metrics.count_change("forgotten")
    found = figures(metrics)["session_pin_changes_total"]
    assert {cause: number for (cause,), number in found.items() if number} == {"refused": 1, "made": 1, "forgotten": 1}
    assert len(found) == 9


async def test_after_100_models_the_others_are_one() -> None:
    names = [f"model-{number}" for number in range(1000)]
    found = (await counted(event(model=name) for name in names))["session_pin_model_requests_total"]
    assert len(found) == MOST_MODELS + 1
    assert found["other", "true"] == 900
    assert found["model-0", "true"] == 1


async def test_a_hostile_name_stays_one_label() -> None:
    name = '"} 1\nsession_pin_pins 99\n# \\'
    found = await counted([event(model=name)])
    assert found["session_pin_model_requests_total"] == {(name, "true"): 1}
    assert "session_pin_pins" not in found


async def test_two_middlewares_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.count(event())
    assert figures(first)["session_pin_requests_total"] != figures(second).get("session_pin_requests_total")


async def test_a_request_without_a_model_counts_for_none() -> None:
    found = await counted([event(status="off", model=None, pinned=False)])
    assert "session_pin_model_requests_total" not in found
    assert found["session_pin_requests_total"] == {(ENDPOINT, "", "off"): 1}


# Several processes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    yield tmp_path
    for each in gc.get_objects():  # only the newest versions have a function for it
        if type(each) is MmapedDict:
            each.close()  # type: ignore[no-untyped-call]


async def test_processes_count_together_and_numbers_are_used_again(folder: Path) -> None:
    for number in (0, 1, 0):
        share(str(folder), number)
        metrics = Metrics()
        metrics.count(event(changes=("made",)))
        metrics.flush()
    found = figures(metrics)
    assert found["session_pin_requests_total"] == {(ENDPOINT, "", "hit"): 3}
    assert found["session_pin_changes_total"]["made",] == 3
    assert {name for name in os.listdir(folder) if name.endswith(".db")} == {
        "counter_0.db",
        "counter_1.db",
        "histogram_0.db",
        "histogram_1.db",
    }


async def test_processes_tell_the_same_100_models_apart(folder: Path) -> None:
    share(str(folder), 0)
    first = Metrics()
    for number in range(60):
        first.count(event(model=f"first-{number}"))
    first.flush()
    share(str(folder), 1)
    second = Metrics()
    for number in range(60):
        second.count(event(model=f"second-{number}"))
    second.count(event(model="first-0"))
    second.flush()
    first.count(event(model="second-0"))
    first.count(event(model="second-59"))
    found = figures(first)["session_pin_model_requests_total"]
    assert len(found) == MOST_MODELS + 1
    assert (found["first-0", "true"], found["second-0", "true"], found["other", "true"]) == (2, 2, 21)


async def test_two_apps_for_operators_of_one_middleware_count_once(folder: Path) -> None:
    share(str(folder), 0)
    pinned = SessionPinMiddleware(Gateway("a"), config=Config(admin=Admin(token="0123456789abcdef")))
    apps = [create_admin(pinned) for _ in range(2)]
    await call(pinned, AUTO, SESSION)
    for app in apps:
        token = (b"authorization", b"Bearer 0123456789abcdef")
        text = (await call(app, b"", token, path="/metrics", method="GET")).body.decode()
        assert f'session_pin_requests_total{{endpoint="{ENDPOINT}",reason="",status="miss"}} 1.0' in text


async def test_figures_of_the_app_in_the_same_folder_are_left_to_the_app(folder: Path) -> None:
    share(str(folder), 0)
    Counter("apps_own", "Of the app", registry=CollectorRegistry()).inc()
    metrics = Metrics()
    metrics.count(event())
    assert all(name.startswith("session_pin_") for name in figures(metrics))


def test_what_was_counted_is_in_the_answers_of_other_processes_soon(folder: Path) -> None:
    program = f"""
import asyncio
from asgi_session_pin import PinEvent
from asgi_session_pin.config import Admin
from asgi_session_pin.operate.admin import create_admin
from asgi_session_pin.operate.metrics import Metrics, share

async def count() -> None:
    share({str(folder)!r}, 1)
    metrics = Metrics()
    for _ in range(2):
        metrics.count(PinEvent("hit", None, "*"))
        await asyncio.sleep(0.5)

asyncio.run(count())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    share(str(folder), 0)
    assert figures(Metrics())["session_pin_requests_total"] == {("*", "", "hit"): 2}


async def test_the_figures_of_all_requests_are_those_of_the_client(clock: Clock) -> None:
    metrics = Metrics()
    gateway = Gateway("a", "b", serve=answer_json)
    app = SessionPinMiddleware(gateway, listeners=[metrics.count], clock=clock)
    statuses = []
    for number in range(500):
        control = (b"x-session-pin", (b"", b"off", b"reset")[number % 3])
        answer = await call(app, AUTO, (b"x-session-id", b"%d" % (number % 7)), control)
        statuses.append(answer.pin_status)
    found = figures(metrics)["session_pin_requests_total"]
    assert {status: number for (_, _, status), number in found.items()} == {
        status: statuses.count(status) for status in set(statuses)
    }
