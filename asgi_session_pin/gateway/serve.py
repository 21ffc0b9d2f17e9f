"""`asgi-session-pin serve`: the gateway app on uvicorn, in worker processes under a supervisor."""

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config import Config, ConfigError
from ..wire.url import read_upstream, refuse_repeated
from .announcement import announce, does_answer
from .listeners import bind, bind_unix
from .logs import Logs, set_up_logging
from .proxy import create_gateway
from .supervisor import Supervisor
from .worker import Certificate, Service

_CLIENTS_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options of the command, by their names. With `uds`, a path, `host` and `port` do not count."""

    upstream: str
    config: str | None
    host: str
    port: int
    uds: str | None
    workers: int
    ssl_certfile: str | None
    ssl_keyfile: str | None
    log_level: str
    log_format: str
    access_log: bool

    @property
    def url(self) -> str:
        """Where it listens, to be shown."""
        scheme = "https" if self.ssl_certfile else "http"
        return f"unix:{self.uds}" if self.uds else f"{scheme}://{self.host}:{self.port}"


def prepare(options: ServeOptions) -> Callable[[], int]:
    """Check everything, and return what serves it until it is stopped, having said what is served.

    What is returned gives the exit code. Raises ConfigError for settings that can't be used, and ValueError, which
    begins with its name, for an option.
    """
    refuse_repeated(read_upstream(options.upstream), _CLIENTS_PATHS)
    if options.ssl_keyfile is not None and options.ssl_certfile is None:
        raise ValueError("ssl-keyfile: found no ssl-certfile, expected both")
    if options.uds is not None and not hasattr(socket, "AF_UNIX"):
        raise ValueError("uds: this system has no such sockets")
    logs = Logs(options.log_level, options.log_format == "json", options.access_log)
    set_up_logging(logs)
    service = _read_service(options, logs)
    return partial(_run, options, service, does_answer(service))


def _read_service(options: ServeOptions, logs: Logs) -> Service:
    certificate = None
    if options.ssl_certfile is not None:
        certificate = Certificate(options.ssl_certfile, options.ssl_keyfile)
        certificate.check()
    service = Service(options.upstream, Config.load(options.config), logs, certificate)
    create_gateway(service.upstream, service.config)  # each worker makes its own: this one shows that it can be
    return service


def _read_again(options: ServeOptions, logs: Logs) -> Service:
    path = options.config
    if path is not None and Path(path).exists() and not Path(path).is_file():
        raise ConfigError(path, ["found what can be read only once, expected a regular file"])
    try:
        fresh = _read_service(options, logs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("options", [str(error)]) from None
    _announce(options, fresh, does_answer(fresh))
    return fresh


def _announce(options: ServeOptions, service: Service, upstream_answers: bool) -> None:
    announce(service, upstream_answers, url=options.url, workers=options.workers, file=options.config)


def _run(options: ServeOptions, service: Service, upstream_answers: bool) -> int:
    with ExitStack() as until_the_end:
        try:
            if options.uds is None:
                listeners = bind(options.host, options.port)
            else:
                listeners = until_the_end.enter_context(bind_unix(options.uds))
        except OSError as error:
            where = f"{options.host}, port {options.port}" if options.uds is None else options.uds
            print(f"asgi-session-pin: can't listen on {where}: {error.strerror or error}", file=sys.stderr)
            return 1
        _announce(options, service, upstream_answers)
        return Supervisor(service, options.workers, listeners, partial(_read_again, options, service.logs)).run()
