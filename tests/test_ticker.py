"""One timer for all answers under way."""

import asyncio

import pytest

from asgi_session_pin.ticker import Ticker


class Counting:
    def __init__(self) -> None:
        self.ticks = 0

    def on_tick(self) -> None:
        self.ticks += 1


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.ticker.TICK_SECONDS", 0.005)


async def test_all_that_is_watched_is_told_that_time_passes_until_it_is_forgotten() -> None:
    ticker, first, second = Ticker(), Counting(), Counting()
    ticker.watch(first)
    ticker.watch(second)
    await asyncio.sleep(0.05)
    assert first.ticks == second.ticks > 1
    ticker.forget(first)
    ticks = first.ticks
    await asyncio.sleep(0.02)
    assert first.ticks == ticks < second.ticks
    ticker.forget(second)
    ticker.forget(second)
    await asyncio.sleep(0.02)
    assert ticker._watched == {}, "nothing is left behind"
    ticker.forget(second)
    ticker.watch(first)
    await asyncio.sleep(0.02)
    assert first.ticks > ticks


def test_each_event_loop_has_its_own_and_one_that_ended_is_dropped() -> None:
    ticker, first, second = Ticker(), Counting(), Counting()

    async def watch(answer: Counting) -> None:
        ticker.watch(answer)
        await asyncio.sleep(0.02)

    asyncio.run(watch(first))
    ticks = first.ticks
    asyncio.run(watch(second))
    assert (first.ticks, len(ticker._watched)) == (ticks, 1)
    assert second.ticks > 0
