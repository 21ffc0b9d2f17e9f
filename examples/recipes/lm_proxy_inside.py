"""Session pinning inside of LM-Proxy, with a router that states what it chose.

It needs `lm-proxy`. Run it with `python examples/recipes/lm_proxy_inside.py [PORT]` where FAKE_PROVIDER_URL and
FAKE_PROVIDER_KEY of lm_proxy.toml are set, then ask for the model `auto`. With an `X-Session-Id` header a whole session
stays on the model that its first request was routed to.
"""

import os
import sys
from pathlib import Path

import uvicorn
from lm_proxy.app import web_app
from lm_proxy.base_types import RequestContext
from lm_proxy.bootstrap import bootstrap

from asgi_session_pin import Config, SessionPinMiddleware, get_session_pin

HERE = Path(__file__).parent


def route(context: RequestContext) -> None:
    """Choose a model for `auto`. A request of a pinned session asks for the pinned model by now."""
    if context.request.model == "auto":
        model = "large" if len(str(context.request.messages[-1]["content"])) > 100 else "small"
        context.llm_params["model"] = context.model = model
        pin = get_session_pin(context.http_request)
        if pin is not None:
            pin.record(model)


if __name__ == "__main__":
    bootstrap(os.environ.get("LM_PROXY_CONFIG", str(HERE / "lm_proxy.toml")), env_file="")
    app = web_app()
    app.add_middleware(SessionPinMiddleware, config=Config.load(HERE / "lm-proxy.yaml"))
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
