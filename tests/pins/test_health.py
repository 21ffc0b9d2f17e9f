"""What is remembered of names and pins is bounded."""

from asgi_session_pin import Config
from asgi_session_pin.pins.health import Health
from asgi_session_pin.pins.recent import MAX_REMEMBERED
from asgi_session_pin.pins.table import NamedModel


def test_the_oldest_names_and_pins_are_forgotten() -> None:
    health = Health(Config(), lambda: 0.0)
    for number in range(MAX_REMEMBERED + 5):
        key = b"%d" % number
        health.serves(key, f"model-{number}")
        health.refuse(key, "refused")
        health.failed(key)
        health.rest(key)
    assert len(health.served) == len(health.refused) == len(health.failures) == MAX_REMEMBERED
    for number, is_known in ((4, False), (5, True), (MAX_REMEMBERED + 4, True)):
        key = b"%d" % number
        assert (f"model-{number}" in health.served) is is_known
        assert health.is_refused(key, "refused") is is_known
        assert health.is_resting(key) is is_known


def test_what_first_answers_are_compared_with_is_bounded() -> None:
    health = Health(Config(), lambda: 0.0)
    answered = NamedModel("a-1", "a", "body:model", "json")
    for number in range(MAX_REMEMBERED + 5):
        health.begin(b"%d" % number, answered)
        assert len(health.fresh) <= MAX_REMEMBERED
    assert health.fresh[b"%d" % (MAX_REMEMBERED + 4)] == answered


def test_what_is_told_again_is_young_again() -> None:
    health = Health(Config(), lambda: 0.0)
    for number in range(MAX_REMEMBERED):
        health.failed(b"%d" % number)
    health.failed(b"0")
    health.failed(b"new")
    assert b"0" in health.failures
    assert b"1" not in health.failures
