"""LiteLLM's own list of its deployments: from what its answers name back to the groups that it takes as `model`."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec

from ..pin import is_model_name

MAX_LISTED = 5_000
MAX_ALIASES = 100
_ROUTER = "auto_router/"

ROUTER_HEADERS = b"x-litellm-complexity-router-"
"""How the headers begin in which an auto-router tells of its choice."""

UNLESS = {
    f"header:{ROUTER_HEADERS.decode()}cause": [
        "housekeeping",
        "plan_mode",
        "default_model_fallback",
        "modality_*",
        "health_*",
    ]
}
"""`decisions.unless`: why an auto-router chooses for one request alone. Such a choice decides nothing for a session."""


class Deployment(NamedTuple):
    """One deployment: the group's name that clients ask for, what it asks its provider for, and its id."""

    group: str
    model: str
    id: str


def read_deployments(body: bytes) -> tuple[Deployment, ...]:
    """Return what LiteLLM's `/model/info` lists; nothing if *body* is anything else."""
    deployments = []
    for item in _items(body):
        parameters, details = _mapping(item.get("litellm_params")), _mapping(item.get("model_info"))
        deployment = Deployment(_text(item.get("model_name")), _text(parameters.get("model")), _text(details.get("id")))
        if deployment.group and deployment.model:
            deployments.append(deployment)
    return tuple(deployments)


def read_listed(body: bytes) -> frozenset[str]:
    """Return the names that `/v1/models` lists; nothing if *body* is anything else."""
    return frozenset(name for item in _items(body) if (name := _text(item.get("id"))))


def auto_routers(deployments: Iterable[Deployment]) -> list[str]:
    """Return the groups that are routers."""
    return list(dict.fromkeys(each.group for each in deployments if each.model.startswith(_ROUTER)))


def group_aliases(deployments: Iterable[Deployment], routed: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return aliases from models, and from ids, to the groups that stand for just that model.

    None leads to a group that has several models or is *routed*, as it would not say which; and none from a model of
    several groups that are left.
    """
    models: dict[str, set[str]] = defaultdict(set)
    for each in deployments:
        models[each.group].add(each.model)
    single = [
        each
        for each in deployments
        if len(models[each.group]) == 1
        and each.group not in routed
        and not each.model.startswith(_ROUTER)
        and each.model.count("*") == each.group.count("*") <= 1
    ]
    single.sort(key=lambda each: "*" in each.model)  # the first alias that matches holds
    groups: dict[str, set[str]] = defaultdict(set)
    for each in single:
        groups[each.model].add(each.group)
    by_model = {each.model: each.group for each in single if len(groups[each.model]) == 1 and each.model != each.group}
    by_id = {each.id: each.group for each in single if each.id and "*" not in each.id + each.group}
    return by_model, by_id


def shorten(aliases: dict[str, str], deployments: Iterable[Deployment]) -> dict[str, str]:
    """Return *aliases* as one pattern, if it is right for all models that it is about."""
    prefixes = {model.removesuffix(group) for model, group in aliases.items()}
    if len(aliases) < 2 or len(prefixes) != 1:
        return aliases
    [prefix] = prefixes
    covered = [each for each in deployments if each.model.startswith(prefix)]
    if not prefix.endswith("/") or any(each.model != prefix + each.group for each in covered):
        return aliases
    return {f"{prefix}*": "*"}


def _items(body: bytes) -> list[dict[str, Any]]:
    try:
        listed = _mapping(msgspec.json.decode(body)).get("data")
    except (ValueError, RecursionError):
        return []
    return [item for item in listed[:MAX_LISTED] if isinstance(item, dict)] if isinstance(listed, list) else []


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """Return a name; empty if *value* is none."""
    return value if isinstance(value, str) and is_model_name(value) else ""
