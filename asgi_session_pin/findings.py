"""From evidence to settings: which of the places where a gateway names models can be used?"""

from typing import Any

from .config import Config
from .deployments import auto_routers
from .evidence import Evidence
from .examination import Examination, Finding
from .naming import DEFAULTS, rank


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
