"""What is remembered of names and pins: for how long, for whom, and that it is bounded."""

from asgi_driver import Clock
from asgi_session_pin import Config, Failover, Pin, Routing
from asgi_session_pin.pins.health import MAX_REMEMBERED, Health


def make_health(clock: Clock, config: Config | None = None) -> Health:
    return Health(config or Config(), clock, compares_all=False)


def test_what_is_remembered_of_names_is_bounded_and_the_oldest_goes_first() -> None:
    health = make_health(Clock())
    for number in range(MAX_REMEMBERED + 5):
        health.prove(b"alice", f"model-{number}")
        health.refuse(b"bob", f"model-{number}")
    for number, is_known in ((4, False), (5, True), (MAX_REMEMBERED + 4, True)):
        assert health.is_proven(b"alice", f"model-{number}") is is_known
        assert health.is_refused(b"bob", f"model-{number}") is is_known


def test_what_is_remembered_of_pins_is_bounded_and_the_least_recently_used_goes_first() -> None:
    health = make_health(Clock())
    pin = Pin("a", 1.0)
    first, second = health.of(b"first", pin), health.of(b"second", pin)
    for number in range(MAX_REMEMBERED - 1):
        health.of(b"%d" % number, pin)
        assert health.of(b"first", pin) is first
    assert health.of(b"second", pin) is not second


def test_a_name_is_refused_for_a_pins_time_to_live_but_no_longer_than_ten_minutes() -> None:
    for ttl, seconds in ((60, 60), (28_800, 600)):
        clock = Clock()
        health = make_health(clock, config=Config(routing=Routing(session_ttl_seconds=ttl)))
        health.refuse(b"alice", "a")
        clock.now += seconds - 1
        assert health.has_refused
        assert health.is_refused(b"alice", "a")
        assert not health.is_refused(b"bob", "a")
        clock.now += 1
        assert not health.is_refused(b"alice", "a")


def test_a_doubted_name_is_refused_the_second_time_unless_it_served_between() -> None:
    health = make_health(Clock())
    assert not health.doubt(b"alice", "a")
    health.prove(b"alice", "a")
    assert not health.doubt(b"alice", "a")
    assert health.doubt(b"alice", "a")
    assert health.is_refused(b"alice", "a")
    health.prove(b"alice", "a")
    assert not health.is_refused(b"alice", "a")


def test_failures_of_requests_that_overlap_are_one() -> None:
    clock = Clock()
    health = make_health(clock)
    known = health.of(b"key", Pin("a", 1.0))
    began = clock.now
    clock.now += 10
    assert [health.fail(known, began) for _ in range(5)] == [False] * 5
    assert known.failures == 1
    assert not health.fail(known, clock.now)
    assert health.is_last_failure(known)
    clock.now += 1
    assert health.fail(known, clock.now)


def test_with_give_up_after_0_no_failure_is_the_last_one() -> None:
    clock = Clock()
    health = make_health(clock, config=Config(failover=Failover(give_up_after=0)))
    known = health.of(b"key", Pin("a", 1.0))
    for _ in range(100):
        clock.now += 1
        assert not health.fail(known, clock.now)


def test_another_pin_of_the_same_session_starts_afresh() -> None:
    clock = Clock()
    health = make_health(clock)
    known = health.of(b"key", Pin("a", 1.0))
    health.fail(known, clock.now)
    health.rest(known)
    assert health.rests(known)
    assert health.of(b"key", Pin("a", 1.0)) is known
    for pin in (Pin("a", 2.0), Pin("b", 2.0)):
        other = health.of(b"key", pin)
        assert (other.failures, health.rests(other)) == (0, False)
    clock.now += 61
    assert not health.rests(known)


def test_the_third_pin_in_a_row_that_drifts_at_once_is_worth_a_word() -> None:
    health = make_health(Clock())
    pins = [health.of(b"%d" % number, Pin("a", 1.0)) for number in range(7)]
    drifted = [True, True, False, True, True, True, True]
    told = [health.compared(known, has_drifted) for known, has_drifted in zip(pins, drifted, strict=True)]
    assert told == [False] * 5 + [True, False]
