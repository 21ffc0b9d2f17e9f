"""From evidence to settings: each list of `decisions.sources`, gone through as the middleware would do it."""

import enum
from collections.abc import Iterable
from typing import Any

import msgspec

from ..config import Config, Decisions
from ..config.patterns import Alias
from ..pin import NamedModel
from ..response.rules import ModelRules, is_same_model
from .evidence import NONSENSE, Evidence, Reply, shown
from .litellm import MAX_ALIASES, UNLESS, auto_routers, group_aliases, shorten
from .places import DEFAULTS, rank, undated

# A gateway that is silent or busy tells nothing about a name.
TROUBLES = frozenset({0, 429, 503, 504})


class Stage(enum.IntEnum):
    """How far an examination came."""

    NO_NAME = 0  # no answer names a model
    ECHO = 1  # answers name none but the one that was asked for
    REFUSED = 2  # they name others, which can't be sent back
    UNTRIED = 3  # they name others, and what comes of sending these back is not known
    WORKS = 4  # they name others, which can be sent back


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What comes of one list of `decisions.sources`.

    - `source`: the one that it is about.
    - `stage`: how far it came; `why`: and why no further, in words.
    - `needs`: a name that is to be sent back before more can be said.
    - `models`: what it names and can be sent back.
    - `routed`: the operator's names that several models answer, or another one; `is_varied`: whether it was several.
    - `aliases`: what the settings need.
    - `doubts`: what is not as it should be.
    """

    source: str
    sources: tuple[str, ...]
    why: str
    stage: Stage
    needs: str | None = None
    models: tuple[str, ...] = ()
    routed: tuple[str, ...] = ()
    is_varied: bool = False
    aliases: dict[str, str] = {}
    doubts: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether what it names can be sent back."""
        return self.stage == Stage.WORKS


class Examination:
    """Finds out whether what *sources* name can be sent back, and which aliases that needs."""

    def __init__(self, evidence: Evidence, sources: tuple[str, ...]) -> None:
        self._evidence = evidence
        self._names = evidence.names
        self._sources = sources
        self._source = sources[0]
        self._aliases: dict[str, str] = {}
        self._near: dict[str, str] = {}
        self._untried: set[str] = set()
        self._answers: dict[str, set[str]] = {name: set() for name in self._names}
        for reply, found in self._find_all(evidence.asked):
            self._answers[reply.model].add(found.name)
        self._varied = [name for name, answers in self._answers.items() if _are_several(answers)]
        self._default = {found.name for _, found in self._find_all(evidence.replies_to(NONSENSE))}
        self._groups = group_aliases(evidence.deployments, self._varied)
        # Of thousands of deployments only those matter that were seen.
        seen = evidence.values
        self._near = {key: group for each in self._groups for key, group in each.items() if "*" in key or key in seen}
        self._rules = self._make_rules({})
        self._asked = self._find_all(evidence.asked)

    def run(self) -> Finding:
        """Return what comes of it."""
        if not self._asked:
            return self._nameless()
        if self._sources == DEFAULTS:
            self._source = " + ".join(dict.fromkeys(found.source for _, found in self._asked))
        others = {found.name: found.model for reply, found in self._asked if found.model != reply.model}
        if not others:
            return self._fails("only repeats the name that was asked for", Stage.ECHO)
        if not self._evidence.replies_to(NONSENSE):
            return self._needs(NONSENSE)
        for name, model in others.items():
            finding = self._settle(name, str(model))
            if finding is not None:
                return finding
        self._rules = self._make_rules({})
        return self._conclude(others)

    def _nameless(self) -> Finding:
        self._source = "the answers' usual places"  # any other source has named something before it is examined
        unusable = sorted({reply.unusable for reply in self._evidence.asked} - {""})
        if not unusable:
            return self._fails("name no model", Stage.NO_NAME)
        told = ", ".join(map(shown, unusable))
        usable = "at most 256 visible ASCII characters without spaces that are more than a number"
        return self._fails(f"name what is no usable model name: {told} (usable are {usable})")

    def _settle(self, name: str, model: str) -> Finding | None:
        """Find what to send back for *name*; return a finding if that ends the examination."""
        failures: list[str] = []
        for target in self._targets(name, model):
            alias = {name: target} if target not in (name, model) else {}
            replies = self._evidence.replies_to(target)
            if not replies and not self._evidence.spent:
                return self._needs(target)
            if not replies or any(reply.status in TROUBLES for reply in replies):
                self._untried.add(target)
                return None
            failure = self._failure(target, self._make_rules(alias))
            if failure is None:
                self._aliases |= alias
                return None
            failures.append(f"{shown(target)} {failure}")
        return self._fails(f"names what is not taken back: {', '.join(failures)}")

    def _targets(self, name: str, model: str) -> list[str]:
        """Return what may stand for *name*: its group, or itself, itself without a date, a model always answered so."""
        if model != name:
            return [model]
        plain = undated(name)
        targets = [name, *([plain] if plain else [])]
        always = [each for each in self._names if self._answers[each] == {name}]
        alike = [each for each in always if is_same_model(each.rpartition(",")[2], name)]  # PROVIDER,MODEL
        own = alike if len(alike) == 1 else always if self._varied else []
        if len(own) == 1:
            # Where unknown names are answered so, the name itself may be one of them.
            targets.insert(0 if name in self._default else len(targets), own[0])
        return list(dict.fromkeys(targets))

    def _failure(self, name: str, rules: ModelRules) -> str | None:
        """Return in words why *name* is none to send back; None if it is one."""
        modes = {reply.stream for reply in self._evidence.asked}
        refuses = any(400 <= reply.status not in TROUBLES for reply in self._evidence.replies_to(NONSENSE))
        for reply in self._evidence.replies_to(name):
            if reply.stream not in modes:
                continue
            if not reply.served:
                return f"was answered with {reply.outcome}"
            # Without what was asked for: an answer as gpt-4o may not count as one of a gpt-4o-mini.
            found = rules.find_model(reply.headers, reply.members, None, None)
            if found is None and not refuses:
                return "was answered without a name"
            if found is not None and not is_same_model(found.model or found.name, name):
                told = ", its answer to any name that it does not know" if found.name in self._default else ""
                return f"was answered as {shown(found.name)}{told}"
        return None

    def _conclude(self, others: Iterable[str]) -> Finding:
        decided = {name: {self._model(reply) for reply in self._replies(name)} - {None, name} for name in self._names}
        routed = tuple(name for name in self._varied or self._names if decided[name])
        models = {model for name in routed for model in decided[name]} - {*routed, *self._untried}
        if not models and self._untried:
            return self._fails(f"names what could not be tried: {self._tell_untried()}", Stage.UNTRIED)
        told = ", ".join(shown(str(model)) for model in sorted(models, key=str))
        unknown = {self._model(reply) for reply in self._evidence.replies_to(NONSENSE)}
        if models <= unknown:
            return self._fails(f"names only {told}, as it does for a name that does not exist")
        return Finding(
            source=self._source,
            sources=self._sources,
            why=f"names the chosen model, and what it names is taken back and answered as the same: {told}",
            stage=Stage.WORKS,
            models=tuple(sorted(map(str, models))),
            routed=routed,
            is_varied=bool(self._varied),
            aliases=self._all_aliases(others),
            doubts=tuple(self._all_doubts(routed, NONSENSE in unknown)),
        )

    def _all_doubts(self, routed: Iterable[str], echoes: bool) -> list[str]:
        doubts = [doubt for name in routed for doubt in self._doubts(name)]
        if echoes:
            doubts.append("a name that does not exist is also answered under that name, so the proof is weak")
        if self._untried:
            doubts.append(f"not tried: {self._tell_untried()}")
        return doubts

    def _tell_untried(self) -> str:
        told = []
        for name in sorted(self._untried):
            outcomes = {reply.outcome for reply in self._evidence.replies_to(name) if reply.status in TROUBLES}
            told.append(f"{shown(name)} ({', '.join(sorted(outcomes)) or 'no request was left for it'})")
        return ", ".join(told)

    def _doubts(self, name: str) -> list[str]:
        replies = self._replies(name)
        doubts = []
        for stream, kind in ((False, "plain"), (True, "streamed")):
            models = {self._model(reply) for reply in replies if reply.stream == stream}
            if None in models:
                doubts.append(
                    f"{kind} answers to {shown(name)} name no model, so a session that begins so is not pinned"
                )
            if name in models:
                doubts.append(f"{kind} answers to {shown(name)} also name {shown(name)} itself, which pins nothing")
        easy = [{self._model(reply) for reply in replies if reply.stream == mode and not reply.hard} for mode in (0, 1)]
        if None not in easy[0] | easy[1] and [len(models) for models in easy] == [1, 1] and easy[0] != easy[1]:
            doubts.append(
                f"streamed answers to {shown(name)} name other models than plain ones, so a session's first request "
                "decides which it gets"
            )
        return doubts

    def _all_aliases(self, others: Iterable[str]) -> dict[str, str]:
        """Return the aliases that were found, and LiteLLM's for whatever it can name there."""
        aliases = dict(self._aliases)
        by_model, by_id = self._groups
        for groups in (shorten(by_model, self._evidence.deployments), by_id):
            used = [key for key, group in groups.items() if any(Alias(key, group).apply(name) for name in others)]
            if used:
                rest = [key for key in groups if key not in used]
                aliases |= {key: groups[key] for key in [*used, *rest][:MAX_ALIASES]}
        return aliases

    def _fails(self, why: str, stage: Stage = Stage.REFUSED) -> Finding:
        return Finding(source=self._source, sources=self._sources, why=why, stage=stage)

    def _needs(self, name: str) -> Finding:
        why = "was not examined: a better place works"
        return Finding(source=self._source, sources=self._sources, why=why, stage=Stage.UNTRIED, needs=name)

    def _make_rules(self, aliases: dict[str, str]) -> ModelRules:
        merged = {**self._aliases, **aliases, **self._near}
        return ModelRules(Config(decisions=Decisions(sources=self._sources, aliases=merged)))

    def _replies(self, name: str) -> list[Reply]:
        return [reply for reply in self._evidence.asked if reply.model == name]

    def _find_all(self, replies: Iterable[Reply]) -> list[tuple[Reply, NamedModel]]:
        """Return those of the replies that name a usable model, with what they name."""
        rules = self._make_rules({})
        found = [(reply, self._find(reply, rules)) for reply in replies]
        return [(reply, named) for reply, named in found if named is not None and named.model is not None]

    def _find(self, reply: Reply, rules: ModelRules) -> NamedModel | None:
        return rules.find_model(reply.headers, reply.members, reply.model, None) if reply.served else None

    def _model(self, reply: Reply) -> str | None:
        found = self._find(reply, self._rules)
        return None if found is None else found.model


def _are_several(names: Iterable[str]) -> bool:
    """Tell whether names are of more than one model: a date, as in streamed answers alone, makes none of them."""
    first, *others = sorted(names) or [""]
    return not all(is_same_model(name, first) for name in others)


def find_all(evidence: Evidence) -> list[Finding]:
    """Return a finding for the defaults, then one for each other source that names something, best first."""
    named = evidence.named
    first = {next((source for source in DEFAULTS if source in sources), None) for sources in named}
    others = dict.fromkeys(source for sources in named for source in sources if source not in first)
    rest = [(source, *(each for each in DEFAULTS if each != source)) for source in sorted(others, key=rank)]
    return [Examination(evidence, sources).run() for sources in [DEFAULTS, *rest]]


def next_name(findings: list[Finding]) -> str | None:
    """Return the name that is to be sent back next; None if nothing more is to be found out."""
    for finding in findings:
        if finding.needs is not None:
            return finding.needs
        if finding.works and not finding.doubts:
            return None
    return None


def choose(findings: list[Finding]) -> Finding | None:
    """Return the finding to use, if any can be."""
    works = [finding for finding in findings if finding.works]
    return min(works, key=lambda finding: len(finding.doubts) > 0, default=None)


def why_not(findings: list[Finding]) -> Finding:
    """Return the finding that came furthest, of those that do not work."""
    return max(findings, key=lambda finding: finding.stage)


def settings_of(evidence: Evidence, finding: Finding) -> dict[str, Any]:
    """Return the settings that *finding* needs, in the shape of the YAML, without what is the default."""
    decisions: dict[str, Any] = {}
    if finding.sources != DEFAULTS:
        decisions["sources"] = list(finding.sources)
    if finding.aliases:
        decisions["aliases"] = dict(finding.aliases)
    if evidence.is_auto_routed:
        decisions["unless"] = UNLESS
    names = router_models(evidence, finding)
    settings = ({"routing": {"router_models": names}} if names else {}) | (
        {"decisions": decisions} if decisions else {}
    )
    Config.load(settings)  # fails here rather than at the operator's
    return settings


def router_models(evidence: Evidence, finding: Finding) -> list[str]:
    """Return the names that the router decides for, where other names are known for which it does not."""
    listed = auto_routers(evidence.deployments)
    fixed = {reply.model for reply in evidence.asked} - set(finding.routed)
    return list(dict.fromkeys([*finding.routed, *listed])) if fixed or listed else []
