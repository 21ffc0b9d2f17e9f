"""What `asgi-session-pin probe` says in the end: as text that fits 100 columns, or as one JSON object."""

import json
import textwrap
from collections import Counter
from typing import Any

import msgspec

from ._patterns import Alias
from ._yaml import dump_yaml
from .evidence import NONSENSE, Evidence, named_in, shown
from .findings import choose, find_all, router_models, settings_of, why_not
from .naming import rank, undated
from .response import is_dated

WIDTH = 100
_HEADINGS = ("source", "names", "plain", "streamed", "which is")
_WIDEST = (36, 36)  # of the first two columns


class Row(msgspec.Struct, frozen=True):
    """What one source names in the answers to one name, and how often."""

    source: str
    value: str
    plain: int
    streamed: int
    kind: str


class Report:
    """The verdict on a gateway with all that it rests on."""

    def __init__(self, evidence: Evidence, url: str, sent: int, limit: int) -> None:
        self._evidence = evidence
        self._url = url
        self._sent, self._limit = sent, limit
        self._known = evidence.known
        self._findings = find_all(evidence)
        self.finding = choose(self._findings)
        self._settings = None if self.finding is None else settings_of(evidence, self.finding)
        self._aliases = [] if self.finding is None else list(self.finding.aliases.items())
        self._tried = list(dict.fromkeys(r.model for r in evidence.replies if r.model not in evidence.names))

    def text(self) -> str:
        """Return the report for people."""
        lines = [line for name in [*self._evidence.names, *self._tried] for line in self._table(name)]
        lines.append("Where the model could be read, best first:")
        for finding in self._findings:
            mark = "+" if finding.works else "-" if finding.needs is None else "?"
            lines += _wrap(f"{finding.source} {finding.why}", f"  {mark} ")
        lines += ["", *_wrap(self.verdict()), *(line for note in self._notes() for line in _wrap(note, "  - "))]
        if self._settings:
            lines += ["", dump_yaml(self._settings).rstrip()]
        lines += ["", f"{self._sent} requests were sent, of at most {self._limit}."]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """Return the same facts as a JSON object."""
        chosen = self.finding
        return json.dumps(
            {
                "url": self._url,
                "asked": list(self._evidence.names),
                "answers": [self._answer(name) for name in self._evidence.names],
                "candidates": [self._answer(name) for name in self._tried if name != NONSENSE],
                "nonexistent": [self._answer(name) for name in self._tried if name == NONSENSE],
                "sources": [
                    {"source": each.source, "works": each.works, "why": each.why, "doubts": list(each.doubts)}
                    for each in self._findings
                ],
                "verdict": {
                    "can_be_pinned": chosen is not None,
                    "source": None if chosen is None else chosen.source,
                    "why": self.verdict(),
                    "notes": self._notes(),
                },
                "settings": self._settings,
                "yaml": dump_yaml(self._settings) if self._settings else "",
                "requests_sent": self._sent,
                "requests_at_most": self._limit,
            },
            indent=2,
        )

    def verdict(self) -> str:
        """Return in a sentence whether this gateway can be pinned, and why."""
        if self.finding is None:
            reason = why_not(self._findings)
            return f"This gateway cannot be pinned by name: {reason.source} {reason.why}."
        needed = "with these settings" if self._settings else "and no setting is needed"
        what = "names the chosen model, and the gateway takes that name back"
        return f"This gateway can be pinned by name, {needed}: {self.finding.source} {what}."

    def _notes(self) -> list[str]:
        if self.finding is None:
            own = "If its router is your own ASGI app, it can state its choice: get_session_pin(request).record(model)."
            plain = "If none of the names that were asked for is a router's, ask for one that is."
            groups = (
                "LiteLLM's /model/info could not be read with this key; it says which names stand for which groups."
            )
            hidden = self._evidence.is_litellm and not self._evidence.deployments
            return [own] + [plain] * (why_not(self._findings).stage == 1) + [groups] * hidden
        notes = [f"{doubt[0].upper()}{doubt[1:]}." for doubt in self.finding.doubts]
        if names := router_models(self._evidence, self.finding):
            told = ", ".join(map(shown, names))
            notes.append(f"router_models: a router decides for {told}; requests for other names pass untouched.")
        else:
            notes.append("router_models stays empty: all names that were asked for are routed, so any may be.")
        if self._evidence.deployments and self.finding.aliases:
            notes.append(
                "aliases: what LiteLLM's /model/info says of its groups; of these only the names above were tried."
            )
        return notes

    def _table(self, name: str) -> list[str]:
        role = "a name that does not exist" if name == NONSENSE else "sent back" if name in self._tried else "asked for"
        lines = _wrap(f"{shown(name)}, {role}: {'; '.join(self._outcomes(name))}")
        rows = self._rows(name)
        if rows:
            cells = [_HEADINGS, *((r.source, r.value, str(r.plain), str(r.streamed), r.kind) for r in rows)]
            widths = [min(most, max(len(row[i]) for row in cells)) for i, most in enumerate(_WIDEST)]
            for source, value, plain, streamed, kind in cells:
                first, second = (_fit(text, width) for text, width in zip((source, value), widths, strict=True))
                lines.append(f"  {first}  {second}  {plain:>5}  {streamed:>8}  {kind}".rstrip())
        return [*lines, ""]

    def _outcomes(self, name: str) -> list[str]:
        replies = self._evidence.replies_to(name)
        served = sum(reply.served for reply in replies)
        failed = Counter(f"{_kind(reply.stream)}: {reply.outcome}" for reply in replies if not reply.served)
        remarks = Counter(
            f"{_kind(reply.stream)}: {reply.remark}" for reply in replies if reply.served and reply.remark
        )
        return [f"{served} of {len(replies)} served", *failed, *remarks]

    def _rows(self, name: str) -> list[Row]:
        counts: dict[tuple[str, str], list[int]] = {}
        for reply in self._evidence.replies_to(name):
            for place in named_in(reply, self._known).items() if reply.served else ():
                counts.setdefault(place, [0, 0])[reply.stream] += 1
        return [
            Row(source, value, plain, streamed, self._relation(value, name))
            for (source, value), (plain, streamed) in sorted(counts.items(), key=lambda item: rank(item[0][0]))
        ]

    def _relation(self, value: str, name: str) -> str:
        if value == name:
            return "the same" if name in self._tried else "an echo"
        if any(Alias(*alias).apply(value) == name for alias in self._aliases):
            return "it, by alias"
        if is_dated(value, name):
            return "it, dated"
        return "dated" if undated(value) else "other"

    def _answer(self, name: str) -> dict[str, Any]:
        replies = [
            {
                "prompt": "hard" if reply.hard else "easy",
                "stream": reply.stream,
                "status": reply.status,
                "served": reply.served,
                "remark": reply.remark,
                "names": named_in(reply, self._known) if reply.served else {},
            }
            for reply in self._evidence.replies_to(name)
        ]
        rows = [msgspec.to_builtins(row) for row in self._rows(name)]
        served = [reply for reply in replies if reply["served"]]
        return {"model": name, "accepted": served == replies, "named": rows, "replies": replies}


def _kind(stream: bool) -> str:
    return "streamed" if stream else "plain"


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 3]}..."


def _wrap(text: str, indent: str = "") -> list[str]:
    following = " " * len(indent)
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=following, break_on_hyphens=False)
