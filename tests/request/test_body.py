"""A body that takes too long, while the app reads on."""

import asyncio

from asgi_session_pin.request.body import Overdue


async def test_what_the_server_raises_is_no_cancellation_and_left_to_the_app() -> None:
    reader = asyncio.current_task()
    assert reader is not None
    call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert not await Overdue(call, reader, cancelling=0).is_cancelled(OSError())
    assert not call.cancelled()
