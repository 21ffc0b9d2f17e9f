"""`python -m asgi_session_pin` is the command `asgi-session-pin`."""

import sys

from .cli import main

sys.exit(main())
