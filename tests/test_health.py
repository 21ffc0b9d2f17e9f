"""What is remembered of names and pins is bounded."""

from asgi_session_pin import Config
from asgi_session_pin.health import MAX_REMEMBERED, Health


def test_the_oldest_names_and_pins_are_forgotten() -> None:
    health = Health(Config(), lambda: 0.0)
    for number in range(MAX_REMEMBERED + 5):
        key = b"%d" % number
        health.serves(key, f"model-{number}")
        health.refuse(key, "refused")
        health.failed(key)
        health.rest(key)
    assert len(health.served) == len(health.refused) == len(health.failures) == MAX_REMEMBERED
    assert "model-4" not in health.served
    assert "model-5" in health.served
    assert not health.is_refused(b"4", "refused")
    assert health.is_refused(b"5", "refused")
    assert not health.is_resting(b"4")
    assert health.is_resting(b"5")


def test_what_is_told_again_is_young_again() -> None:
    health = Health(Config(), lambda: 0.0)
    for number in range(MAX_REMEMBERED):
        health.failed(b"%d" % number)
    health.failed(b"0")
    health.failed(b"new")
    assert b"0" in health.failures
    assert b"1" not in health.failures
