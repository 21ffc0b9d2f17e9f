"""Loading of settings that are written to a file, and what is told about those that can't be used."""

import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from asgi_session_pin.config import Config, ConfigError


def load(file: Path, text: str | bytes) -> Config:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Config.load(file)


def faults(file: Path, text: str | bytes) -> list[str]:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return faults_of(file)


def faults_of(source: Any) -> list[str]:
    """Return why *source* is refused, without the lines of the file where it stands."""
    return [re.sub(r" \(line \d+\)\Z", "", fault) for fault in error_of(source).faults]


def error_of(source: Any) -> ConfigError:
    """Return why *source* is refused; whatever the fault, a secret shows nowhere (they all are hunter2 here)."""
    with pytest.raises(ConfigError) as caught:
        Config.load(source)
    assert "hunter2" not in everything_printed(caught.value)
    return caught.value


def everything_printed(error: BaseException) -> str:
    """Return all that a traceback in a log shows, errors this one came from included."""
    return "".join(traceback.format_exception(error)) + repr(error)
