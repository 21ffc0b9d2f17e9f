"""Session pinning inside of LiteLLM's own proxy.

It needs `litellm[proxy]`. Run it with `LITELLM_MASTER_KEY=... python examples/litellm/inside.py [PORT]` where
FAKE_PROVIDER_URL and FAKE_PROVIDER_KEY of config.yaml are set, then ask for the model `smart`. With an `X-Session-Id`
header a whole session stays on the model that its first request was routed to.
"""

import os
import sys
from pathlib import Path

import uvicorn

from asgi_session_pin import Config, SessionPinMiddleware

os.environ.setdefault("CONFIG_FILE_PATH", str(Path(__file__).with_name("config.yaml")))
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # read by the import: no prices are fetched
from litellm.proxy.proxy_server import app

app.add_middleware(SessionPinMiddleware, config=Config.load(Path(__file__).with_name("session_pin.yaml")))

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
