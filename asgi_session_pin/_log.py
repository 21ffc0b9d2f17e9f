"""The package's logger."""

import logging

logger = logging.getLogger("asgi_session_pin")
