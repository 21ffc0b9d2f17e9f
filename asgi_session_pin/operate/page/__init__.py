"""The page for operators: one file, which asks the API below it for all that it shows."""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import Response

_inline = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL).findall


def make_page() -> Response:
    """Return the page. A browser may run its own script, use its own style and ask this server, and nothing else."""
    content = (files(__package__) / "index.html").read_bytes()
    allowed = {kind: base64.b64encode(hashlib.sha256(text).digest()).decode() for kind, text in _inline(content)}
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src 'sha256-{allowed[b'script']}'; style-src 'sha256-{allowed[b'style']}'"
    )
    return Response(content, media_type="text/html", headers={"content-security-policy": policy})
