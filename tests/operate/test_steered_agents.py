"""An operator retires a model and pauses pinning while agents loop through several workers."""

from pathlib import Path

import pytest

import steered_agents
from redis_servers import redis_server
from steered_agents import GOES, Call, Moments, Step, faults_of, faults_of_calls


@pytest.mark.parametrize("kind", ["SQLite", "Redis"])
async def test_all_workers_follow_an_operator_and_no_agent_is_hurt(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        url = server.url if kind == "Redis" else f"sqlite:///{tmp_path}/pins.db"
        wrong, seen = await steered_agents.run(tmp_path, url, pins=200, workers=2, agents=6, seconds=0.5, follows=2.5)
    assert wrong == [], seen


def step(began: float, **fields: object) -> Step:
    told = {"loop_began": began, "ended": began + 0.1, "session": 1, "is_human": True, "before": None, "status": "hit"}
    return Step(**{**told, "model": "a", "began": began, **fields})  # type: ignore[arg-type]


MOMENTS = Moments(retired=10, paused=20, resuming=29.9, resumed=30)


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ([step(5, is_human=False, before="b")], "a tool loop broke"),
        ([step(35, is_human=False, before="b")], "a tool loop broke"),
        ([step(11, model=GOES)], "a person's turn went to the retired model"),
        ([step(21)], "pinned while paused"),
        ([step(31, status="off; reason=paused")], "not pinned again"),
        ([step(12), step(32, model="b")], "a pin of before the pause is gone"),
    ],
)
def test_what_goes_wrong_is_seen(steps: list[Step], fault: str) -> None:
    [found] = faults_of(steps, MOMENTS)
    assert found.startswith(fault)


def test_what_is_as_it_should_be_is_no_fault() -> None:
    loop = step(12, is_human=False, before=GOES, model=GOES)
    between = [step(10.5, model=GOES), step(20.5), step(20.5, status="off; reason=paused")]
    across = step(35, loop_began=25, is_human=False, before="b")
    assert list(faults_of([loop, *between, step(25, status="off; reason=paused"), across], MOMENTS)) == []


def test_the_gateway_behind_sees_it_too() -> None:
    def came(began: float, model: str, *, is_human: bool = True) -> Call:
        return Call(began, began + 0.05, model, is_human)

    fine = [came(10.5, GOES), came(15, GOES, is_human=False), came(15, "a"), came(20.5, "a"), came(29.88, "a")]
    assert list(faults_of_calls([*fine, came(25, "auto")], MOMENTS)) == []
    assert len(list(faults_of_calls([came(11.5, GOES), came(25, "a", is_human=False)], MOMENTS))) == 2
