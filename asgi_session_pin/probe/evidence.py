"""What a gateway's replies to `asgi-session-pin probe` tell of models. All of it is text from outside."""

import re
from collections.abc import Callable

import msgspec

from ..response.errors import find_error
from ..response.rules import read_source
from ..wire.compression import open_decoder
from ..wire.headers import EVENTS, JSON, media_type
from ..wire.json import Members, find_string, read_object
from ..wire.sse import EventDecoder
from .litellm import ROUTER_HEADERS, Deployment, auto_routers
from .places import BODY_DEFAULTS, MAX_SOURCES, names_in_body, names_in_headers, rank, unusable_name

NONSENSE = "asgi-session-pin-probe-nonexistent"  # a name that no gateway has

MAX_BYTES = 262_144  # of a reply that are looked at
MAX_EVENTS = 64

_is_code = re.compile(r"[A-Za-z0-9_.-]{1,40}").fullmatch


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for one request.

    - `model`, `hard`, `stream`: what was asked for, with the hard prompt or the easy one, streamed or not.
    - `status`: of HTTP; 0 if none came.
    - `headers`: those that came once, by lower-case name.
    - `members`: of the body or of its events, as far as they name a model.
    - `unusable`: what stands there in place of a name.
    - `failed`: it is an error, whatever its status.
    - `remark`: what else there is to say of it.
    """

    model: str
    hard: bool
    stream: bool
    status: int
    headers: dict[bytes, bytes] = {}
    members: Members = {}
    unusable: str = ""
    failed: bool = False
    remark: str = ""

    @property
    def served(self) -> bool:
        """Whether the model answered."""
        return 200 <= self.status < 300 and not self.failed

    @property
    def outcome(self) -> str:
        """The status in words."""
        if not self.status:
            return self.remark
        if 300 <= self.status < 400:
            location = self.headers.get(b"location", b"").partition(b"?")[0].decode("latin-1")
            return f"HTTP {self.status}, a redirect to {shown(location)}, which is not followed"
        told = f"HTTP {self.status}" + (" with an error" if self.failed and self.status < 300 else "")
        return f"{told} ({self.remark})" if self.remark else told


def shown(name: str) -> str:
    """Return a text as it is printed: quoted, escaped and cut."""
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")


class Evidence(msgspec.Struct, kw_only=True):
    """All that is known of a gateway.

    - `names`: that the operator asks about.
    - `listed`: names that the gateway lists.
    - `deployments`: of LiteLLM.
    - `spent`: no request is left to find out more.
    """

    names: tuple[str, ...]
    replies: list[Reply] = []
    listed: frozenset[str] = frozenset()
    deployments: tuple[Deployment, ...] = ()
    spent: bool = False

    def renamed(self, rename: Callable[[str], str]) -> "Evidence":
        """Return the same about models of other names."""
        replies = [msgspec.structs.replace(reply, model=rename(reply.model)) for reply in self.replies]
        return msgspec.structs.replace(self, names=tuple(map(rename, self.names)), replies=replies)

    def replies_to(self, model: str) -> list[Reply]:
        """Return the replies to requests for *model*."""
        return [reply for reply in self.replies if reply.model == model]

    @property
    def asked(self) -> list[Reply]:
        """The replies to requests for the operator's names, as far as they were served."""
        return [reply for reply in self.replies if reply.model in self.names and reply.served]

    @property
    def is_litellm(self) -> bool:
        """Whether the gateway is a LiteLLM."""
        return any(name.startswith(b"x-litellm-") for reply in self.replies for name in reply.headers)

    @property
    def is_auto_routed(self) -> bool:
        """Whether the gateway is a LiteLLM that has an auto-router."""
        tells = any(name.startswith(ROUTER_HEADERS) for reply in self.replies for name in reply.headers)
        return tells or bool(auto_routers(self.deployments))

    @property
    def known(self) -> frozenset[str]:
        """Names of models, wherever they came from."""
        bodies = {name for reply in self.asked for name in names_in_body(reply.members).values()}
        return frozenset(self.names) | self.listed | bodies

    @property
    def values(self) -> frozenset[str]:
        """All that may be a name, from wherever it came."""
        headers = {value.decode("latin-1").strip() for reply in self.replies for value in reply.headers.values()}
        return frozenset(headers.union(*(names_in_body(reply.members).values() for reply in self.replies)))

    @property
    def named(self) -> list[dict[str, str]]:
        """What each source names in the replies to the operator's names."""
        known = self.known
        return [named_in(reply, known) for reply in self.asked]


def named_in(reply: Reply, known: frozenset[str]) -> dict[str, str]:
    """Return what each source, as the YAML writes it, names in *reply*; *known* are names of models."""
    named = names_in_headers(reply.headers, known) | names_in_body(reply.members)
    return dict(sorted(named.items(), key=lambda item: rank(item[0]))[:MAX_SOURCES])


class BodyReader:
    """Looks at a body as it comes, until it has named a model; `finished` says that no more is needed."""

    def __init__(self, headers: dict[bytes, bytes], is_secret: Callable[[str], bool]) -> None:
        self.members: Members = {}
        self.unusable = ""
        self.failed = False
        self.remark = ""
        self.finished = False
        self._is_secret = is_secret
        self._kind = media_type(headers.get(b"content-type", b""))
        self._decoder = open_decoder(headers.get(b"content-encoding", b""))
        self._events = EventDecoder()
        self._seen = 0
        self._size = 0
        self._content = bytearray()
        if self._kind is None or self._decoder is None:
            self._finish("neither JSON nor events")

    def feed(self, data: bytes) -> None:
        """Look at the next piece."""
        if self.finished or self._decoder is None:
            return
        try:
            data = self._decoder.decode(data, MAX_BYTES - self._size + 1)
        except Exception:  # whatever a decoder does
            return self._finish("can't be decoded, or is too large")
        self._size += len(data)
        if self._kind == JSON:
            self._content += data
        else:
            for _, event in self._events.feed(data):
                self._look(read_object(event))
        if self._size > MAX_BYTES and not self.finished:
            self._finish("names no model in its first 256 KiB" if self._kind == EVENTS else "larger than 256 KiB")

    def end(self) -> None:
        """Look at what has come: there is no more of it."""
        if self._kind == JSON and not self.finished:
            self._look(read_object(bytes(self._content)))
            if self._content.lstrip()[:1] != b"{":
                self.remark = "no JSON object"

    def _look(self, members: Members) -> None:
        if self.finished:
            return
        self._seen += 1
        if find_error(members) is not None:
            self.failed = True
            code = _error_code(members)
            return self._finish("" if self._is_secret(code) else code)
        found = names_in_body(members)
        named = [source for source, name in found.items() if not self._is_secret(source) and not self._is_secret(name)]
        if len(named) < len(found):
            self.remark = "what holds a credential is left out"
        for source in named:
            key = read_source(source)[2][0]
            self.members.setdefault(key, members[key])
        unusable = unusable_name(members)
        self.unusable = self.unusable or ("" if self._is_secret(unusable) else unusable)
        usual = any(source in BODY_DEFAULTS for source in named)
        self.finished = usual or self._seen >= MAX_EVENTS

    def _finish(self, remark: str) -> None:
        self.finished = True
        self.remark = remark


def _error_code(members: Members) -> str:
    """Return the error's code, if it is a plain word: messages may hold anything."""
    codes = [find_string(members, path) for path in (("error", "code"), ("error", "type"), ("code",))]
    return next((code for code in codes if code and _is_code(code) and not code.isdecimal()), "")
