"""`create_gateway` on a server that is not uvicorn: `python other_server.py hypercorn|granian UPSTREAM PORT`."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from asgi_session_pin.gateway import create_gateway


def make_app() -> Any:
    """Return the gateway, as granian's workers make it for themselves."""
    return create_gateway(os.environ["UPSTREAM"])


def main() -> None:
    server, os.environ["UPSTREAM"], port = sys.argv[1:]
    if server == "hypercorn":
        from hypercorn.asyncio import serve
        from hypercorn.config import Config

        config = Config()
        config.bind = [f"127.0.0.1:{port}"]
        asyncio.run(serve(make_app(), config))
    else:
        from granian.server import Server

        options: dict[str, Any] = {"interface": "asgi", "factory": True, "working_dir": Path(__file__).parent}
        Server("other_server:make_app", address="127.0.0.1", port=int(port), **options).serve()


if __name__ == "__main__":
    main()
