"""The time for which answers are held: precise, in order, in one event loop at a time."""

import asyncio
from contextvars import Context

import pytest

from asgi_driver import until
from asgi_session_pin.hold_timer import HoldTimer

SECONDS = 0.05


class Held:
    def __init__(self) -> None:
        self.is_let_go = False

    def time_is_up(self, context: Context) -> None:
        self.is_let_go = True


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", SECONDS)


async def test_each_answer_is_let_go_after_its_own_time_unless_it_is_forgotten() -> None:
    timer = HoldTimer()
    first, forgotten, second = Held(), Held(), Held()
    timer.add(first)
    timer.add(forgotten)
    await asyncio.sleep(SECONDS / 2)
    timer.add(second)
    timer.forget(forgotten)
    timer.forget(Held())
    await until(lambda: first.is_let_go)
    assert not second.is_let_go
    await asyncio.sleep(2 * SECONDS)
    assert [held.is_let_go for held in (first, forgotten, second)] == [True, False, True]


def test_what_is_held_in_a_loop_that_is_over_is_nothing_to_the_next_one() -> None:
    timer = HoldTimer()
    old, new = Held(), Held()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def add(held: Held) -> None:
        timer.add(held)

    first.run_until_complete(add(old))
    second.run_until_complete(add(new))
    first.run_until_complete(asyncio.sleep(2 * SECONDS))
    assert (old.is_let_go, new.is_let_go) == (False, False)
    second.run_until_complete(asyncio.sleep(2 * SECONDS))
    assert (old.is_let_go, new.is_let_go) == (False, True)
    first.close()
    second.close()
