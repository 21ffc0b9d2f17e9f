"""Calls of a Redis server over redis-py's connections, many of them in one round trip.

redis-py's client would take a third more time for a call: it asks its pool for a connection and looks whether that has
data, which a connection does not need that goes from one call to the next.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, ReadOnlyError, ResponseError, TimeoutError

Command: TypeAlias = tuple[bytes | str | int, ...]

# So many calls have a connection each, which is quicker where there are no more at a time: a batch costs a task.
_ALONE = 4


class Batches:
    """Sends calls over so many *connections* at most. One that comes while others go on is sent with those of its tick.

    At 100 parallel calls that takes a third of the time. A call that is cancelled leaves its batch, which is broken off
    when all of its calls have left. For one event loop.

    *make_connection* returns a connection, which is opened when something is sent.
    """

    def __init__(self, make_connection: Callable[[], AbstractConnection], connections: int) -> None:
        self._make_connection = make_connection
        self._idle: list[AbstractConnection] = []
        self._all: list[AbstractConnection] = []
        self._most = connections
        self._alone = 0
        self._next: _Batch | None = None  # it still takes calls
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(self, *command: bytes | str | int) -> Any:
        """Send a command and return the answer."""
        if self._alone < _ALONE and self._next is None and (connection := self._take()) is not None:
            self._alone += 1
            try:
                [answer] = await _exchange(connection, [command])
            finally:
                self._alone -= 1
                self._give_back(connection)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if self._next is None:
            self._next = _Batch()
            asyncio.get_running_loop().call_soon(self._begin)
        return await self._next.answer(command)

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in self._all:
            await connection.disconnect()

    def _take(self) -> AbstractConnection | None:
        """Return a connection that nobody uses, if there is one, or there may be one more."""
        if self._idle:
            return self._idle.pop()
        if len(self._all) == self._most:
            return None
        self._all.append(self._make_connection())
        return self._all[-1]

    def _give_back(self, connection: AbstractConnection) -> None:
        self._idle.append(connection)
        self._begin()

    def _begin(self) -> None:
        """Send the next batch, if somebody waits for one and there is a connection for it."""
        batch = self._next
        if batch is None:
            return
        if not batch.callers:
            self._next = None
            return
        connection = self._take()
        if connection is None:
            return
        self._next = None
        batch.task = asyncio.get_running_loop().create_task(batch.send(connection))
        self._tasks.add(batch.task)
        batch.task.add_done_callback(partial(self._sent, connection))

    def _sent(self, connection: AbstractConnection, task: asyncio.Task[None]) -> None:
        # Not at the end of what the task does: one that is cancelled before it has begun does nothing.
        self._tasks.discard(task)
        self._give_back(connection)


class _Batch:
    """Calls that are sent together."""

    def __init__(self) -> None:
        self._commands: list[Command] = []
        self._answers: list[asyncio.Future[Any]] = []
        self.callers = 0
        """How many still wait."""
        self.task: asyncio.Task[None] | None = None
        """Sends it, and is cancelled when nobody waits any more."""

    async def answer(self, command: Command) -> Any:
        """Send a command with the others and return its answer."""
        future = asyncio.get_running_loop().create_future()
        self._commands.append(command)
        self._answers.append(future)
        self.callers += 1
        try:
            return await future
        except asyncio.CancelledError:
            self.callers -= 1
            if not self.callers and self.task is not None:
                self.task.cancel()
            raise

    async def send(self, connection: AbstractConnection) -> None:
        """Send all commands, and give each caller what came for it."""
        try:
            answers = await _exchange(connection, self._commands)
        except Exception as error:
            answers = [error] * len(self._answers)
        for future, answer in zip(self._answers, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


async def _exchange(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Send commands and return the answers, errors of the server among them; tried again once, at once."""
    try:
        answers = await _send_and_read(connection, commands)
        if not any(isinstance(answer, ReadOnlyError) for answer in answers):
            return answers
        await connection.disconnect()  # from a master that has become a replica; its address may lead to the new one
    except (ConnectionError, TimeoutError):  # an idle connection may have died
        pass
    return await _send_and_read(connection, commands)


async def _send_and_read(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    answers: list[Any] = []
    try:
        if not connection.is_connected:
            # Sending would do so too, but not ask Sentinel where to.
            await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_packed_command(connection.pack_commands(commands))
        while len(answers) < len(commands):
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
    except BaseException:
        await connection.disconnect(nowait=True)  # an answer that was not read must not be the next call's
        raise
    return answers
