"""Figures that take long to count."""

import asyncio

from asgi_driver import Clock
from asgi_session_pin.operate.census import Census


class Slow:
    """Counts up, when it is let."""

    def __init__(self) -> None:
        self.counts = 0
        self.may_go_on = asyncio.Event()
        self.is_out = False

    async def count(self) -> int:
        self.counts += 1
        await self.may_go_on.wait()
        if self.is_out:
            raise OSError("out")
        return self.counts


async def test_who_asks_waits_for_a_while_and_the_count_goes_on(clock: Clock) -> None:
    slow = Slow()
    census = Census(slow.count, 0, clock, patience_seconds=0.01)
    assert [await census.figures() for _ in range(3)] == [0, 0, 0]
    slow.may_go_on.set()
    await asyncio.sleep(0)
    assert [await census.figures() for _ in range(3)] == [1, 1, 1]
    assert slow.counts == 1


async def test_it_is_counted_again_after_a_while_and_a_failure_leaves_what_was_counted(clock: Clock) -> None:
    slow = Slow()
    slow.may_go_on.set()
    census = Census(slow.count, 0, clock, patience_seconds=5)
    told = []
    for seconds in (0, 14, 2, 16):
        clock.now += seconds
        slow.is_out = seconds == 16
        told.append(await census.figures())
    assert told == [1, 1, 2, 2]
    assert slow.counts == 3


async def test_a_count_ends_with_the_app(clock: Clock) -> None:
    slow = Slow()
    census = Census(slow.count, 0, clock, patience_seconds=0.01)
    before = asyncio.all_tasks()
    census.close()
    await census.figures()
    [task] = asyncio.all_tasks() - before
    census.close()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


def test_a_count_of_another_event_loop_is_none(clock: Clock) -> None:
    async def begin() -> tuple[Census[int], Slow]:
        slow = Slow()
        census = Census(slow.count, 0, clock, patience_seconds=0.01)
        await census.figures()
        return census, slow

    async def go_on(slow: Slow) -> int:
        slow.may_go_on = asyncio.Event()
        slow.may_go_on.set()
        return await census.figures()

    loop = asyncio.new_event_loop()
    census, slow = loop.run_until_complete(begin())
    assert asyncio.run(go_on(slow)) == 2
    slow.may_go_on.set()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
