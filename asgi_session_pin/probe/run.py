"""`asgi-session-pin probe`: asks a live gateway how it names models, and says which settings it needs."""

import asyncio
import re
import shutil
import sys
from collections.abc import Iterable, Sequence

import msgspec

from ..request.session import PRESETS
from ..terminal import Style, styled, wrapped
from ..wire.headers import NAME
from ..wire.url import base_path, read_upstream, refuse_repeated
from .asking import MAX_TOKENS, NoAnswer, Prober, Target
from .evidence import NONSENSE, Evidence, Reply, shown
from .findings import TROUBLES, find_all, next_name
from .litellm import read_deployments, read_listed
from .report import NARROW, WIDTH, Report

# Each name of the operator's is asked for in this order, plain and streamed: a router that decides by the prompt goes
# one way and back.
ROUNDS = (False, True, False)
SENT_BACK = 16  # requests for names that answers gave
_EACH_SENT_BACK = ((False, False), (True, False), (False, True), (True, True))
_OTHERS = 5  # the lists of models and of deployments, at two places, a name that does not exist, one more try
_MAX_SILENCES = 3

PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")  # tried in turn where none is given
_ENDINGS = ("/chat/completions", "/v1/messages", "/responses")
_ABSENT = (404, 405, 501)
_is_path = re.compile(r"/[\w.~/%:@+=,-]*", re.ASCII).fullmatch
_header = re.compile(rf"({NAME}):[ \t]*([\x21-\x7e\x80-\xff][ \t\x21-\x7e\x80-\xff]*)").fullmatch
_is_key = re.compile(r"[\x21-\x7e]+").fullmatch
_is_credential = re.compile(r"auth|key|token|secret|cookie|pass|credential|sign", re.IGNORECASE).search
# Sessions would be kept on a model by gateways that know of them; the others are the probe's own affair.
_OWN_HEADERS = {"content-length", "content-type", "transfer-encoding", "accept-encoding", "connection", "expect"}
_SESSION_HEADERS = {"x-session-pin", *(source.partition(":")[2] for names in PRESETS.values() for source in names)}


class Stopped(Exception):
    """Nothing can be found out."""


def read_target(upstream: str, path: str | None, key: str | None, headers: Iterable[str], timeout: float) -> Target:
    """Return what is to be probed. Raises ValueError for what can't be used, without any secret in it."""
    parts = read_upstream(upstream)
    path, *others = PATHS if path is None else (path,)
    if not _is_path(path) or not path.endswith(_ENDINGS):
        raise ValueError(f"path: expected a path that ends in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}")
    if key is not None and not _is_key(key):
        raise ValueError("key: expected visible ASCII characters")
    own = dict(map(_read_header, headers))
    credentials = [key or "", *(value for name, value in own.items() if _is_credential(name))]
    words = {word for text in credentials for word in [text, *re.split(r"[\s;=,]+", text)]}
    words -= {"", *(word for word in words if word.lower() in ("bearer", "basic"))}
    base = f"{parts.scheme}://{parts.netloc}{base_path(parts)}"
    target = Target(
        base=base, path=path, others=tuple(others), key=key, own=own, secrets=frozenset(words), timeout=timeout
    )
    try:
        refuse_repeated(parts, [path])
    except ValueError as error:
        raise ValueError(target.hide(str(error))) from None
    return target


def _read_header(text: str) -> tuple[str, str]:
    found = _header(text)
    if found is None:
        raise ValueError("header: expected 'NAME: VALUE'")
    name = found[1].lower()
    if name in _OWN_HEADERS or name in _SESSION_HEADERS:
        raise ValueError(f"header: {name} can't be set here")
    return name, found[2].rstrip()


async def run_probe(
    target: Target, names: Sequence[str], *, as_json: bool, verbose: bool, file: str | None, overwrites: bool
) -> int:
    """Ask the gateway, print what was found, and return the exit code: that of the report, 2 if there is none.

    The settings are also written into *file*, if there is one and it is new, or *overwrites* says that it may go.
    """
    limit = len(names) * 2 * len(ROUNDS) + SENT_BACK + _OTHERS + len(target.others)
    _tell(f"at most {limit} requests to {target.hide(target.url)}, each for an answer of at most {MAX_TOKENS} tokens")
    prober = Prober(target, limit)
    run = _Run(prober, Evidence(names=tuple(names)))
    try:
        await run.run()
    except Stopped as error:
        _tell(f"error: {target.hide(str(error))}")
        return 2
    except asyncio.CancelledError:  # by the keyboard
        _tell(f"stopped; requests sent: {prober.sent}")
        return 130
    base, path = target.hide(target.base), target.hide(prober.target.path)
    report = Report(run.evidence.renamed(target.hide), base, path, sent=prober.sent, limit=limit, file=file)
    width = min(WIDTH, max(NARROW, shutil.get_terminal_size((WIDTH, 0)).columns))
    if as_json:
        print(report.json(), flush=True)
    else:
        verdict, rest = report.text(width, verbose=verbose).split("\n\n", 1)
        print(
            styled(verdict, Style.GOOD if report.can_be_pinned else Style.BAD, sys.stdout), rest, sep="\n\n", flush=True
        )
    return report.code if file is None or report.finding is None else _write(report, file, overwrites)


def _write(report: Report, file: str, overwrites: bool) -> int:
    """Write the settings into a file, and return the exit code."""
    try:
        with open(file, "w" if overwrites else "x") as output:
            output.write(report.file_text())
    except OSError as error:
        _tell(f"error: {file} can't be written: {error.strerror}")
        return 2
    return report.code


class _Run:
    """Gathers the evidence."""

    def __init__(self, prober: Prober, evidence: Evidence) -> None:
        self.evidence = evidence
        self._prober = prober
        self._silences = 0

    async def run(self) -> None:
        for name in self.evidence.names:
            _tell(f"asking for {self._shown(name)}")
            for stream in (False, True):
                for hard in ROUNDS:
                    await self._ask(name, hard, stream)
        if not self.evidence.asked:
            raise Stopped(f"no request was served: {self._outcomes()}{self._hint()}")
        if all(reply.remark for reply in self.evidence.asked) and not any(self.evidence.named):
            raise Stopped(f"no answer could be read: {self._outcomes()}; are --upstream and --path right?")
        await self._look_at_lists()
        await self._send_back()

    def _shown(self, name: str) -> str:
        return shown(self._prober.target.hide(name))

    async def _ask(self, name: str, hard: bool, stream: bool) -> Reply:
        first = not self.evidence.replies
        try:
            reply = await (self._find_endpoint if first else self._prober.ask)(name, hard=hard, stream=stream)
        except NoAnswer as error:
            self._silences += 1
            if first or self._silences == _MAX_SILENCES:
                raise Stopped(f"{self._prober.target.url}: {error}") from None
            reply = Reply(model=name, hard=hard, stream=stream, status=0, remark=str(error))
        self.evidence.replies.append(reply)
        if first and 300 <= reply.status < 400:
            raise Stopped(f"{self._prober.target.url}: the first request got {reply.outcome}")
        if first and reply.status == 401:
            raise Stopped(f"{self._prober.target.url}: the first request got {reply.outcome}{self._hint()}")
        return reply

    async def _find_endpoint(self, name: str, *, hard: bool, stream: bool) -> Reply:
        """Ask for the first time, at each path that may be the endpoint's; stay where it is served, or at the first."""
        target = self._prober.target
        reply = await self._prober.ask(name, hard=hard, stream=stream)
        for path in target.others if reply.status in _ABSENT else ():
            _tell(f"{target.hide(self._prober.target.path)} is answered with {reply.status}; trying {path}")
            self._prober.target = msgspec.structs.replace(target, path=path)
            other = await self._prober.ask(name, hard=hard, stream=stream)
            if other.served:
                return other
        self._prober.target = target
        return reply

    def _outcomes(self) -> str:
        return ", ".join(dict.fromkeys(reply.outcome for reply in self.evidence.replies))

    def _hint(self) -> str:
        """Return what may mend it where nothing is served."""
        statuses = {reply.status for reply in self.evidence.replies}
        if statuses <= TROUBLES:
            return ""
        if statuses & {401, 403}:
            return "; is the key right, and allowed to use this model? (--key, --key-env, --header)"
        return "; are --upstream, --path, --model and the key right?"  # LiteLLM gives 400 and 500 for a wrong key

    async def _look_at_lists(self) -> None:
        _tell("reading the lists of models")
        is_secret = self._prober.target.is_secret
        listed = read_listed(await self._prober.get(_sibling(self._prober.target.path)))
        self.evidence.listed = frozenset(name for name in listed if not is_secret(name))
        if self.evidence.is_litellm:
            for path in ("/model/info", "/v1/model/info"):
                deployments = read_deployments(await self._prober.get(path))
                self.evidence.deployments = tuple(each for each in deployments if not any(map(is_secret, each)))
                if self.evidence.deployments:
                    break

    async def _send_back(self) -> None:
        left = SENT_BACK
        while (name := next_name(find_all(self.evidence))) is not None:
            if name == NONSENSE:
                _tell(f"asking for {shown(name)}, which no gateway has")
                await self._ask(name, hard=False, stream=False)
            elif left < len(_EACH_SENT_BACK):
                self.evidence.spent = True
            else:
                _tell(f"sending back {self._shown(name)}")
                for hard, stream in _EACH_SENT_BACK:
                    left -= 1
                    if not (await self._ask(name, hard, stream)).served:
                        break


def _sibling(path: str) -> str:
    """Return the path of the list of models that goes with an endpoint."""
    ending = next(ending for ending in _ENDINGS if path.endswith(ending))
    return path.removesuffix(ending) + ("/v1/models" if ending == "/v1/messages" else "/models")


def _tell(text: str) -> None:
    line = wrapped(f"asgi-session-pin probe: {text}", "    ", sys.stderr)
    print(styled(line, Style.BAD, sys.stderr) if text.startswith("error: ") else line, file=sys.stderr, flush=True)
