"""`asgi-session-pin probe`: asks a live gateway how it names models, and says which settings it needs."""

from .run import read_target, run_probe

__all__ = ["read_target", "run_probe"]
