"""Session pinning inside of LitServe, whose OpenAI API got a router.

It needs `litserve`. Run it with `python examples/recipes/litserve_inside.py [PORT]`, then ask for the model `auto`.
With an `X-Session-Id` header a whole session stays on the model that its first request was routed to.

LitServe alone answers under the name that it was asked for, so there would be nothing to pin.
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litserve
from fastapi import BackgroundTasks
from litserve.specs.openai import ChatCompletionRequest

from asgi_session_pin import Config, SessionPinMiddleware

CONFIG = Config.load(Path(__file__).with_name("litserve.yaml"))


class RoutedSpec(litserve.OpenAISpec):  # type: ignore[misc]
    """OpenAI's API with a router: the answer names the model that it chose."""

    async def chat_completion(self, request: ChatCompletionRequest, background_tasks: BackgroundTasks) -> Any:
        """Route what asks for `auto`. A request of a pinned session asks for the pinned model by now."""
        if request.model == "auto":
            request.model = "large" if len(request.messages[-1].content) > 100 else "small"
        return await super().chat_completion(request, background_tasks)


class Models(litserve.LitAPI):  # type: ignore[misc]
    """Stands for the models."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def predict(self, request: ChatCompletionRequest, context: dict[str, Any]) -> Iterator[str]:
        """Say which model it is."""
        yield f"I am {context['model']}."


def run(spec: litserve.OpenAISpec, config: Config, port: int) -> None:
    """Serve until SIGINT, or SIGTERM, by which LitServe would leave its workers behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pinning = (SessionPinMiddleware, {"config": config})
    server = litserve.LitServer(Models(spec=spec), accelerator="cpu", middlewares=[pinning])
    # One process has all pins; LitServe would start one for each of its workers.
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    run(RoutedSpec(), CONFIG, int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
