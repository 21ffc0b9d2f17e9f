"""Configuration: YAML or a dict in, checked and frozen settings out, or every fault at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ..wire.headers import NAME
from .reading import SECRETS, Fault, read_settings, with_lines, without_credentials
from .yaml import dump_yaml, load_yaml

FINGERPRINT = "fingerprint"

_MARKS = ("x-session-pin", "x-session-pinned", "x-session-model")
# Our own headers are no source of anything. Without flags, which JSON schema's expressions do not have.
_OWN = "|".join(re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", name) for name in _MARKS)
_HEADER = rf"header:(?!({_OWN})\Z){NAME}"
_BODY = r"body:[^.\s]+(\.[^.\s]+)*"

# What a description says is the "expected ..." of a message.
ItemT = TypeVar("ItemT")
AtLeastOne = Annotated[tuple[ItemT, ...], Meta(min_length=1, description="a list of at least one item")]
Seconds = Annotated[float, Meta(gt=0, le=10**9, description="a number of seconds above 0, at most 1,000,000,000")]
Count = Annotated[int, Meta(ge=1, le=10**9, description="a whole number from 1 to 1,000,000,000")]
Bytes = Annotated[int, Meta(ge=1, le=10**12, description="a whole number of bytes from 1 to 1,000,000,000,000")]
Name = Annotated[str, Meta(min_length=1, description="a name or a pattern with *")]
RouterModel = Annotated[str, Meta(pattern=r"[^*]", description="a name or a pattern with *, but not * alone")]
SessionSource = Annotated[
    str,
    Meta(
        pattern=f"^({_HEADER}|{_BODY}|preset:(coding-agents|body-ids)|{FINGERPRINT})\\Z",
        description='"header:NAME", "body:PATH.TO.ID", "preset:coding-agents", "preset:body-ids" or "fingerprint"',
    ),
]
PartitionPart = Annotated[
    str, Meta(pattern=f"^{_HEADER}\\Z", description='"header:NAME" (instead of "model" use sessions.pin_per)')
]
DecisionSource = Annotated[
    str, Meta(pattern=f"^({_HEADER}|{_BODY})\\Z", description='"header:NAME" or "body:PATH.TO.NAME"')
]
HeaderSource = Annotated[str, Meta(pattern=f"^{_HEADER}\\Z", description='"header:NAME"')]
Unless = Annotated[
    dict[HeaderSource, AtLeastOne[Name]],
    Meta(description='a mapping of "header:NAME" to a list of values'),
]
StoreURL = Annotated[
    str,
    Meta(
        pattern=r"^(memory://|sqlite:///[^\x00]+|rediss?(\+sentinel|\+cluster)?://\S+|unix://\S+)\Z",
        description='"memory://", "sqlite:///FILE", "redis://HOST:PORT/DB", "unix:///SOCKET", '
        '"redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB" or "redis+cluster://HOST:PORT,HOST:PORT" (TLS: "rediss")',
    ),
]
RESPONSES = "*/responses"  # which other applications have as well
AdminToken = Annotated[
    str,
    Meta(pattern=r"^[\x21-\x7e]{16,}\Z", description="at least 16 visible characters, such as ${PIN_ADMIN_TOKEN}"),
]
OnFailure = Literal["reroute", "pass"]


def _check_network(text: str) -> None:
    if text != "unix":
        ip_network(text)


Network = Annotated[
    str,
    Meta(description='an address, a network such as "10.0.0.0/8" or "unix"', extra={"check": _check_network}),
]


class ConfigError(ValueError):
    """The configuration can't be used.

    *faults* has a line for each thing that is wrong: its dotted path, what was found and what was expected.
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n  ".join((f"{source}: {count}", *faults)))


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, "***" if name in SECRETS else getattr(self, name)) for name in self.__struct_fields__]


class Routing(_Section, frozen=True):
    """How long a pin holds, how many there are, and for which models the router decides.

    - `session_ttl_seconds`: a pin lapses after this long without use.
    - `session_ttl_sliding`: each use renews it; False counts from the decision.
    - `session_max_age_seconds`: a pin is decided afresh after this long, used or not, as soon as a switch is safe;
      None: never. It is not where the request goes on in a tool loop, or carries state of a provider.
    - `session_max_entries`: bound of the in-process table; the least recently used pin goes first.
    - `tool_loop_seconds`: a request that goes on in a tool loop, or carries state of a provider, keeps a pin that
      lapsed up to this long ago; 0: never.
    - `release`: `never`, or `user_turn`: where a person has said something and a switch is safe, the router decides
      anew.
    - `retired_models`: pins on these names (`*` is special) are decided afresh as soon as a switch is safe, and these
      are never a decision.
    - `decision_wait_seconds`: parallel first requests of a session wait this long for one decision; 0: never.
    - `router_models`: names the router decides for (`*` is special). Empty: any name may be one. Given: a request for
      another model passes untouched, and these names are never a decision.
    """

    session_ttl_seconds: Seconds = 600
    session_ttl_sliding: bool = True
    session_max_age_seconds: Seconds | None = None
    session_max_entries: Count = 10_000
    tool_loop_seconds: Annotated[
        float, Meta(ge=0, le=10**9, description="a number of seconds from 0 to 1,000,000,000")
    ] = 3600
    release: Literal["never", "user_turn"] = "never"
    router_models: tuple[RouterModel, ...] = ()
    retired_models: tuple[RouterModel, ...] = ()
    decision_wait_seconds: Annotated[float, Meta(ge=0, le=3600, description="a number of seconds from 0 to 3600")] = 5


class Sessions(_Section, frozen=True):
    """Which session a request belongs to.

    - `sources`: where the session's id comes from, the first that is present counts: a header, a string in the JSON
      body (which is read for it), the headers that coding agents send by themselves (`preset:coding-agents`), or the
      ids that the APIs have in the body, `conversation` and `prompt_cache_key` (`preset:body-ids`). `fingerprint`, the
      last one, is no id but how a conversation begins: the credential, the system prompt, the tools' names and the
      user's first text.
    - `pin_per`: `model`: what a session asks for under one name keeps one model; `session`: all that it asks for does.
    - `partition_by`: headers that are parts of the key beside the id; all that are present count. Of `authorization`
      the scheme's case does not (RFC 9110, section 11.1).
    - `max_id_length`: longer ids are not used, in bytes.
    - `secret`: keys the digest of ids, so that whoever can read a shared store can't test guessed ids against it.
    """

    sources: AtLeastOne[SessionSource] = ("header:x-session-id",)
    pin_per: Literal["model", "session"] = "model"
    partition_by: tuple[PartitionPart, ...] = (
        "header:authorization",
        "header:x-api-key",
        "header:api-key",
        "header:x-goog-api-key",
        "header:x-litellm-api-key",
        "header:ocp-apim-subscription-key",
    )
    max_id_length: Annotated[int, Meta(ge=1, le=65_536, description="a whole number from 1 to 65536")] = 256
    secret: Annotated[str, Meta(min_length=1, description="a string")] | None = None


class Decisions(_Section, frozen=True):
    """Where a response names the model that the router chose.

    - `sources`: headers and members of JSON bodies or SSE events, tried in this order.
    - `aliases`: name in the response -> name to send; a `*` on the right carries what the left one matched.
    - `unless`: a header of the response -> values (`*` is special) with which the answer decides nothing.
    """

    sources: tuple[DecisionSource, ...] = (
        "header:x-vsr-selected-model",
        "body:model",
        "body:message.model",
        "body:response.model",
        "body:models.0",
    )
    aliases: dict[str, Name] = {}
    unless: Unless = {}


class Endpoint(_Section, frozen=True):
    """A path of the app, as a pattern, and what is done there; POST only, one trailing slash is tolerated.

    - `path`: only `*` is special, and it crosses "/". Behind `*/responses` may be another application's endpoint: what
      has none of `input`, `prompt`, `previous_response_id` and `conversation` passes untouched there.
    - `kind`: `completion` (pinned), `decision` (only says which model it would use) or `ignore`.
    """

    path: Annotated[str, Meta(pattern=r"^[/*]", description='a path pattern that starts with "/" or "*"')]
    kind: Literal["completion", "decision", "ignore"] = "completion"


class Failover(_Section, frozen=True):
    """What happens when a pinned model does not serve.

    - `on_refused`: the gateway refuses the pinned name. `reroute` sends the request as it came, once, and gives the pin
      up if that is answered; `pass` leaves it at the refusal.
    - `on_unavailable`: 429, 5xx or an exception. `reroute` sends the request as it came, once, and keeps the pin;
      `pass` leaves it at the failure.
    - `give_up_after`: after so many failures in a row the pin itself is given up; 0: never.
    """

    on_refused: OnFailure = "reroute"
    on_unavailable: OnFailure = "reroute"
    give_up_after: Annotated[int, Meta(ge=0, le=10**6, description="a whole number from 0 to 1,000,000")] = 3


class Gateway(_Section, frozen=True):
    """How `asgi-session-pin serve` and `create_gateway` reach the upstream; the middleware alone ignores it.

    - `connect_timeout_seconds`: for a connection to the upstream.
    - `read_timeout_seconds`: between two pieces of a response, and for a piece of the request; None: models think.
    - `keepalive_seconds`: an idle connection is dropped after this long: sooner than the upstream drops it.
    - `client_keepalive_seconds`: an idle connection of a client is kept this long; `serve` alone listens.
    - `max_connections`: to the upstream; None: as many as there are requests.
    - `ca_file`: authorities (PEM) to trust beside those of the system, or of SSL_CERT_FILE.
    - `trust_forwarded`: addresses and networks of proxies whose `X-Forwarded-*`, `Forwarded` and `X-Real-IP` are
      believed and added to, or `unix` for who comes by a socket file; anybody else's are replaced.
    """

    connect_timeout_seconds: Seconds = 5
    read_timeout_seconds: Seconds | None = None
    keepalive_seconds: Seconds = 2
    client_keepalive_seconds: Seconds = 75
    max_connections: Count | None = None
    ca_file: Annotated[str, Meta(min_length=1, description="a file of certificates (PEM)")] | None = None
    trust_forwarded: tuple[Network, ...] = ()


class Admin(_Section, frozen=True):
    """What operators see, in `serve` and by `create_admin`.

    - `path`: everything below it is answered here, and nothing by the upstream: `/healthz` and `/readyz` for anybody.
    - `token`: who has it gets the metrics and the API, too, by `Authorization: Bearer`; None: nobody does.
    - `metrics`: for Prometheus, where there is a token and `prometheus_client` is installed.
    - `tokens`: read from the answers how many tokens they report, cached ones apart.
    """

    path: Annotated[str, Meta(pattern=r"^/[\w.~/-]*[\w.~-]\Z", description='a path such as "/-/session-pin"')] = (
        "/-/session-pin"
    )
    token: AdminToken | None = None
    metrics: bool = True
    tokens: bool = False


class Store(_Section, frozen=True):
    """Where the pins are kept.

    - `url`: `memory://`, this process's own table; `sqlite:///pins.db` (`sqlite:////var/lib/pins.db` from the root), a
      file for the workers of one host; `redis://host:6379/0`, Redis or Valkey for a fleet, or `unix:///redis.sock`;
      `redis+sentinel://h1:26379,h2:26379/SERVICE/0`, the master of Sentinel's service;
      `redis+cluster://h1:7000,h2:7001`, a Cluster by some of its nodes. `rediss` in place of `redis`: with TLS.
    - `timeout_seconds`: for all calls of a shared store before the app is called, together; to record a decision, and
      each time that a waiting request looks for one, per call.
    """

    url: StoreURL = "memory://"
    timeout_seconds: Seconds = 0.1

    @property
    def is_shared(self) -> bool:
        """Whether other processes see the same pins."""
        return self.url != "memory://"

    @property
    def is_redis(self) -> bool:
        """Whether the store is Redis or Valkey, however it is reached."""
        return self.url.startswith(("redis", "unix"))

    @property
    def shown_url(self) -> str:
        """The URL for people to read, without user, password and options."""
        if not self.is_redis:
            return self.url
        scheme, _, address = self.url.partition("://")
        user, _, host = address.rpartition("@")
        return f"{scheme}://{'***@' if user else ''}{host.partition('?')[0]}"


class Limits(_Section, frozen=True):
    """Bounds on what is held in memory, and for how long.

    - `max_request_bytes`: a larger request body passes on without pinning.
    - `max_inspected_response_bytes`: of a response looked at for its model; the response itself has no limit.
    - `max_buffered_bytes`: request bodies that are held before the app, all together; one session gets a quarter.
      Beyond it requests stream through unpinned, and none waits for a decision. What comes in one piece counts only
      while it waits.
    - `body_seconds`: a request body that is not whole so long after its first piece streams through unpinned.
    - `max_pins_per_credential`: of the in-process table (`memory://`), for all who send the same headers of
      `sessions.partition_by`; their own least recently used pin goes first. None: `session_max_entries` alone bounds.
    """

    max_request_bytes: Bytes = 33_554_432
    max_inspected_response_bytes: Bytes = 8_388_608
    max_buffered_bytes: Bytes = 268_435_456
    body_seconds: Seconds = 30
    max_pins_per_credential: Count | None = None


class Config(_Section, frozen=True):
    """All settings; values given in Python are checked when the middleware is made.

    - `endpoints`: tried in order, the first match counts.
    - `response_headers`: False sends the client none of our headers.
    - `restore_model`: answers name the model that the client asked for, in JSON and events; a JSON answer is held until
      it is whole; what is compressed, or has a digest, goes as it is, which `X-Session-Pin-Status` tells.
    """

    routing: Routing = Routing()
    sessions: Sessions = Sessions()
    decisions: Decisions = Decisions()
    endpoints: AtLeastOne[Endpoint] = (
        Endpoint(path="*/routing/v1/chat/completions", kind="decision"),
        Endpoint(path="*/deployments/*", kind="ignore"),  # the path names the model there: a body's model would lie
        Endpoint(path="*/engines/v1/chat/completions"),  # Docker Model Runner: the model is in the body
        Endpoint(path="*/engines/*/v1/chat/completions"),
        Endpoint(path="*/engines/*", kind="ignore"),
        Endpoint(path="*/chat/completions"),
        Endpoint(path=RESPONSES),
        Endpoint(path="*/responses/compact"),
        Endpoint(path="*/v1/messages"),
        Endpoint(path="*/v1/completions"),
    )
    failover: Failover = Failover()
    store: Store = Store()
    limits: Limits = Limits()
    gateway: Gateway = Gateway()
    admin: Admin = Admin()
    response_headers: bool = True
    restore_model: bool = False

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Config | None) -> Config:
        """Return the checked settings of a YAML file, of a mapping of its shape, or of a Config made in Python.

        Raises ConfigError, with all faults, if the file can't be read or anything in it can't be used.
        """
        if source is None:
            return cls()
        if isinstance(source, str | os.PathLike):
            return cls._load_file(os.fspath(source))
        config, faults = cls._read(source)
        if config is None:
            raise ConfigError(source_name(source), list(map(str, faults)))
        return config

    @classmethod
    def _load_file(cls, path: str) -> Config:
        try:
            with open(path, "rb") as file:
                text = file.read()
            config, faults = cls._read(load_yaml(text))
        except OSError as error:
            raise ConfigError(path, [f"can't be read: {error.strerror}"]) from None
        except ValueError as error:  # the text is no YAML, or the path holds what no path can
            raise ConfigError(path, [str(error)]) from None
        if config is None:
            raise ConfigError(path, with_lines(faults, text))
        return config

    @classmethod
    def _read(cls, value: Any) -> tuple[Config | None, list[Fault]]:
        config, faults = read_settings(cls, value)
        if config is None:
            return None, faults
        faults = _contradictions(config)
        return (None if faults else config), faults

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values of the YAML's shape, secrets masked."""
        values = msgspec.to_builtins(self, builtin_types=())
        values["sessions"]["secret"] = None if self.sessions.secret is None else "***"
        values["admin"]["token"] = None if self.admin.token is None else "***"
        values["store"]["url"] = self.store.shown_url
        shown: dict[str, Any] = without_credentials(values)
        return shown

    def to_yaml(self) -> str:
        """Return the settings as YAML, of which `load` makes the same again, but for secrets, which are masked."""
        return dump_yaml(self.to_dict())


def _contradictions(config: Config) -> list[Fault]:
    """Return what can't work beside another setting."""
    sources = config.sessions.sources
    faults = [
        Fault(
            f"sessions.sources.{index}",
            f"found 'fingerprint' before {sources[index + 1]!r}, expected it last: nearly every request has one",
        )
        for index, source in enumerate(sources[:-1])
        if source == FINGERPRINT
    ]
    if FINGERPRINT in sources and not config.sessions.partition_by:
        what = (
            "found an empty list beside 'fingerprint' in sessions.sources, expected the headers of credentials, "
            "without which strangers with the same prompt would be one session"
        )
        faults.append(Fault("sessions.partition_by", what))
    return faults


def source_name(source: object) -> str:
    """Return what errors call the source of a configuration: a file by its path."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "configuration"
