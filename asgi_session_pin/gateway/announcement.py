"""What `asgi-session-pin serve` says first: where it listens, before what, and what it pins there."""

import asyncio
import logging
import sys
import threading
from typing import Any

from .. import __version__
from ..config import Config
from ..terminal import Style, styled, wrapped
from .proxy import ReverseProxy
from .worker import Service

logger = logging.getLogger("asgi_session_pin.serve")

_PATIENCE = 2.0  # seconds, in which an upstream that is there answers


def announce(service: Service, upstream_answers: bool, *, url: str, workers: int, file: str | None) -> None:
    """Tell at the level INFO what is served from now on, and warn of what looks like a mistake.

    *url* is where it listens, and *file* where the settings come from.
    """
    store = service.config.store
    told = {
        "upstream": f"{service.upstream}, which {'answers' if upstream_answers else 'does not answer yet'}",
        "pins": _pins(service.config),
        "sessions": ", ".join(service.config.sessions.sources),
        "router": ", ".join(service.config.routing.router_models) or "any model (routing.router_models names none)",
        "settings": file or "the defaults (--config FILE)",
    }
    if service.config.admin.token is not None:
        told["page"] = f"{url}{service.config.admin.path}, for operators"
    listens = f"{url}, {workers} worker{'s' * (workers > 1)}"
    if service.logs.as_json:
        logger.info("%s -> %s", url, service.upstream, extra={"members": {"version": __version__, **told}})
    elif logger.isEnabledFor(logging.INFO):
        _print(listens, told, Style.GOOD if upstream_answers else Style.BAD)
    if not upstream_answers:
        logger.warning(
            "%s does not answer: requests get a 502 until it does. Is it started, and is --upstream right?",
            service.upstream,
        )
    if workers > 1 and not store.is_shared:
        logger.warning(
            "store.url is memory://, so each worker has its own pins, and a session can get a model for each of them"
        )


def _pins(config: Config) -> str:
    since = "their last use" if config.routing.session_ttl_sliding else "their decision"
    bound = "" if config.store.is_redis else f", at most {config.routing.session_max_entries:,}"
    return f"{config.store.shown_url} for {config.routing.session_ttl_seconds:g} s after {since}{bound}"


def _print(listens: str, told: dict[str, Any], upstream: Style) -> None:
    name = f"asgi-session-pin {__version__}"
    lines = [
        wrapped(f"{name} on {listens}", "    ", sys.stderr).replace(name, styled(name, Style.STRONG, sys.stderr), 1)
    ]
    for label, text in told.items():
        line = wrapped(f"  {label:<10}{text}", " " * 12, sys.stderr)
        lines.append(styled(line, upstream, sys.stderr) if label == "upstream" else line)
    lines.append(wrapped("Next: send requests there in place of the upstream. Ctrl+C ends it.", "  ", sys.stderr))
    print("\n".join(lines), file=sys.stderr, flush=True)


def does_answer(service: Service) -> bool:
    """Tell whether the upstream answers, which nobody waits for long: a resolver's thread can't be stopped."""
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(asyncio.run(_ask(service))), daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return answers == [True]


async def _ask(service: Service) -> bool:
    proxy = ReverseProxy(service.upstream, service.config.gateway)
    try:
        return await proxy.is_ready()
    finally:
        await proxy.aclose()
