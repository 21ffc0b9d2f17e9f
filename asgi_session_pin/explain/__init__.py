"""`asgi-session-pin explain`: what the middleware does with a saved request, and which setting would change that."""

from .report import Explanation
from .saved import read_answer, read_file, read_request

__all__ = ["Explanation", "read_answer", "read_file", "read_request"]
