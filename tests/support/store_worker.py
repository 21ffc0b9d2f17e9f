"""One of several processes behind which a session has to stay on one model: asks for each session once, many at a time.

`python store_worker.py STORE_URL SESSIONS`. It says when it is ready, and starts when a line comes in. Then it prints
which model each session got and for how many it asked its router, which names models of this process's own.
"""

import asyncio
import json
import os
import random
import sys

from starlette.types import Receive, Scope, Send

from asgi_driver import answer_json, asked_model, call, read_body
from asgi_session_pin import Config, Routing, SessionPinMiddleware, Store

AT_A_TIME = 50
routed: list[str] = []


async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
    asked = asked_model(await read_body(receive))
    if asked == "auto":
        await asyncio.sleep(random.uniform(0, 0.02))
        asked = f"model-{os.getpid()}-{len(routed)}"
        routed.append(asked)
    await answer_json(send, asked)


async def main(url: str, sessions: int) -> None:
    # A machine that is busy with all the processes is slow: nothing is to be decided by a store that did not answer.
    config = Config(store=Store(url=url, timeout_seconds=30), routing=Routing(decision_wait_seconds=60))
    app = SessionPinMiddleware(gateway, config=config)
    room = asyncio.Semaphore(AT_A_TIME)

    async def ask(session: int) -> str:
        async with room:
            answer = await call(app, {"model": "auto"}, (b"x-session-id", b"session-%d" % session))
            assert "store-unavailable" not in str(answer.pin_status), answer.pin_status
            return str(answer.json["model"])

    models = await asyncio.gather(*(ask(session) for session in range(sessions)))
    await app.aclose()
    json.dump({"models": models, "routed": len(routed)}, sys.stdout)


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201  # its parent waits for all of them
    sys.stdin.readline()
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
