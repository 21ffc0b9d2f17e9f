"""What `asgi-session-pin probe` says in the end: as text that fits 100 columns, or as one JSON object."""

import json
import shlex
import textwrap
from collections import Counter, defaultdict
from typing import Any

from ..config.yaml import dump_yaml
from .evidence import NONSENSE, Evidence, named_in, shown
from .findings import Finding, Stage, choose, find_all, router_models, settings_of, why_not
from .litellm import MAX_ALIASES
from .places import rank

WIDTH, NARROW = 100, 80  # of the text
SETTINGS = "session_pin.yaml"  # what the file of settings is called where no name is given


class Report:
    """The verdict on a gateway with all that it rests on."""

    def __init__(
        self, evidence: Evidence, base: str, path: str, *, sent: int, limit: int, file: str | None = None
    ) -> None:
        self._evidence = evidence
        self._base, self._path = base, path
        self._sent, self._limit = sent, limit
        self._file = file
        self._known = evidence.known
        self._findings = find_all(evidence)
        self.finding = choose(self._findings)
        self._settings = None if self.finding is None else settings_of(evidence, self.finding)
        self._tried = list(dict.fromkeys(r.model for r in evidence.replies if r.model not in evidence.names))
        self._why_not = why_not(self._findings)

    @property
    def can_be_pinned(self) -> bool | None:
        """Whether sessions can be pinned there by name; None if that could not be found out."""
        return True if self.finding is not None else None if self._why_not.stage == Stage.UNTRIED else False

    @property
    def code(self) -> int:
        """The exit code of the command."""
        return {True: 0, False: 1, None: 2}[self.can_be_pinned]

    @property
    def _lacks_groups(self) -> bool:
        """Whether this is a LiteLLM of which nobody said what its answers' names are called in requests."""
        return self._evidence.is_litellm and not self._evidence.deployments

    def text(self, width: int = WIDTH, *, verbose: bool = False) -> str:
        """Return the report for people, in lines of *width* characters, from NARROW to WIDTH."""
        lines = _wrap(self.verdict(), width)
        if self._settings:
            lines += ["", self._yaml().rstrip()]
        lines += ["", *(line for note in self._notes() for line in _wrap(note, width, "  - "))]
        if command := self._next():
            lines += ["", *_wrap(self._before_next(), width), _folded(f"  {command}", width)]
        if verbose:
            lines += ["", *self._tables(width)]
        hint = "" if verbose else " --verbose shows what came back."
        return "\n".join([*lines, "", f"{self._sent} requests were sent, of at most {self._limit}.{hint}"])

    def file_text(self) -> str:
        """Return the settings as a file."""
        names = ", ".join(map(shown, self._evidence.names))
        return f"# What asgi-session-pin probe found for {names} at {self._base}{self._path}\n\n{self._yaml()}"

    def _yaml(self) -> str:
        return dump_yaml(self._settings) if self._settings else ""

    def _next(self) -> str | None:
        """Return the command to type next."""
        if self.finding is None:
            return None
        settings = ["--config", self._file or SETTINGS] if self._settings else []
        return shlex.join(["asgi-session-pin", "serve", *settings, "--upstream", self._base])

    def _before_next(self) -> str:
        if not self._settings:
            return "Next:"
        if self._file is not None:
            return f"These settings are in {self._file}. Next:"
        return f"Next, with these settings in {SETTINGS} (--output {SETTINGS} writes that file):"

    def _tables(self, width: int) -> list[str]:
        lines = [line for name in [*self._evidence.names, *self._tried] for line in self._lines(name, width)]
        lines.append("Where the model could be read, usual places first:")
        for finding in self._findings:
            mark = "+" if finding.works else "-" if finding.needs is None else "?"
            lines += _wrap(f"{finding.source} {finding.why}", width, f"  {mark} ")
        return lines

    def json(self) -> str:
        """Return the same facts as a JSON object."""
        chosen = self.finding
        return json.dumps(
            {
                "url": self._base + self._path,
                "asked": list(self._evidence.names),
                "answers": [self._answer(name) for name in self._evidence.names],
                "candidates": [self._answer(name) for name in self._tried if name != NONSENSE],
                "nonexistent": [self._answer(name) for name in self._tried if name == NONSENSE],
                "sources": [
                    {"source": each.source, "works": each.works, "why": each.why, "doubts": list(each.doubts)}
                    for each in self._findings
                ],
                "verdict": {
                    "can_be_pinned": self.can_be_pinned,
                    "source": None if chosen is None else chosen.source,
                    "why": self.verdict(),
                    "notes": self._notes(),
                },
                "settings": self._settings,
                "yaml": self._yaml(),
                "next": self._next(),
                "requests_sent": self._sent,
                "requests_at_most": self._limit,
            },
            indent=2,
        )

    def verdict(self) -> str:
        """Return in a sentence whether this gateway can be pinned, and why."""
        if self.finding is None:
            reason = f"{self._why_not.source} {self._why_not.why}"
            if self._why_not.stage == Stage.UNTRIED:
                return f"It could not be found out whether this gateway can be pinned by name: {reason}."
            if self._why_not.stage == Stage.ECHO or self._lacks_groups:
                return f"This gateway cannot be pinned by name, as far as these requests show: {reason}."
            if self._why_not.stage == Stage.NO_NAME:
                reason = "its answers name no model, neither in a header nor in the body"
            return f"This gateway cannot be pinned by name: {reason}."
        needed = "with these settings" if self._settings else "and no setting is needed"
        what = "names the chosen model, and the gateway takes that name back"
        return f"This gateway can be pinned by name, {needed}: {self.finding.source} {what}."

    def _notes(self) -> list[str]:
        unserved = [name for name in self._evidence.names if name not in {r.model for r in self._evidence.asked}]
        notes = [f"{shown(name)} was never served, so nothing is known of it." for name in unserved]
        return notes + (self._notes_why_not() if self.finding is None else self._notes_on_settings(self.finding))

    def _notes_why_not(self) -> list[str]:
        if self._why_not.stage == Stage.UNTRIED:
            return ["Try again when it is less busy, or with fewer names."]
        router = "If none of the names that were asked for is a router's, ask for one that is."
        groups = (
            "LiteLLM's /model/info, which says what its answers' names are called in requests, could not be read. "
            "Use a key that may read it, or give the names of the models to --model too."
        )
        own = (
            "If the router is an ASGI app of your own, it can state what it chose: put the middleware inside and call "
            "get_session_pin(request).record(model)."
        )
        names = (
            "If it takes other names for these models, give them to --model too: the settings then map what answers "
            "name to them. At Claude Code Router they are PROVIDER,MODEL."
        )
        told = {router: self._why_not.stage == Stage.ECHO, groups: self._lacks_groups, own: True}
        told[names] = self._why_not.stage == Stage.REFUSED and not self._lacks_groups
        return [note for note, holds in told.items() if holds]

    def _notes_on_settings(self, finding: Finding) -> list[str]:
        notes = [f"{doubt[0].upper()}{doubt[1:]}." for doubt in finding.doubts]
        if len(finding.models) == 1:
            notes.append(f"Only {shown(finding.models[0])} was ever chosen; what else may be was not seen.")
        elif not finding.is_varied:
            notes.append("No name was answered by several models, so which of them are a router's was not seen.")
        if names := router_models(self._evidence, finding):
            told = ", ".join(map(shown, names))
            notes.append(f"router_models: a router decides for {told}; requests for other names pass untouched.")
        else:
            notes.append(
                "router_models stays empty, so any name may be a router's: only names that are routed were asked for. "
                "Add the name of a model to --model to have them told apart."
            )
        if self._evidence.deployments and finding.aliases:
            notes.append(
                "aliases: what LiteLLM's /model/info says of its groups; of these only the names above were tried."
            )
        if self._evidence.is_auto_routed:
            notes.append(
                "unless: what LiteLLM's auto-router says of a choice that is for one request alone, such as a title's; "
                "it decides nothing for the session."
            )
        if len(finding.aliases) >= MAX_ALIASES:
            notes.append(f"aliases: of many, {len(finding.aliases)} are here; add those that the router can choose.")
        return notes

    def _lines(self, name: str, width: int) -> list[str]:
        role = "a name that does not exist" if name == NONSENSE else "sent back" if name in self._tried else "asked for"
        lines = _wrap(f"{shown(name)}, {role}: {'; '.join(self._outcomes(name))}", width)
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for reply in self._evidence.replies_to(name):
            for place in named_in(reply, self._known).items() if reply.served else ():
                counts[place][_kind(reply.stream)] += 1
        for (source, value), kinds in sorted(counts.items(), key=lambda item: rank(item[0][0])):
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            lines += _wrap(f"{source}: {value} ({told})", width, "  ")
        return [*lines, ""]

    def _outcomes(self, name: str) -> list[str]:
        replies = self._evidence.replies_to(name)
        served = sum(reply.served for reply in replies)
        failed = [f"{_kind(reply.stream)}: {reply.outcome}" for reply in replies if not reply.served]
        remarks = [f"{_kind(reply.stream)}: {reply.remark}" for reply in replies if reply.served and reply.remark]
        return [f"{served} of {len(replies)} served", *dict.fromkeys(failed + remarks)]

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
        return {"model": name, "accepted": all(reply["served"] for reply in replies), "replies": replies}


def _folded(command: str, width: int) -> str:
    """Return a command in lines of *width* characters, which a shell reads as one."""
    return command if len(command) <= width else command.replace(" --", " \\\n    --")


def _kind(stream: bool) -> str:
    return "streamed" if stream else "plain"


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    following = " " * len(indent)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=following, break_on_hyphens=False)
