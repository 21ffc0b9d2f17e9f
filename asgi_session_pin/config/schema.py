"""The JSON schema of a configuration file, for editors."""

import inspect
import re
import typing
from typing import Any

import msgspec

from .settings import Config, Endpoint

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# What an editor sees before the environment fills it in: it may become anything.
_TEMPLATE = {"type": "string", "pattern": r"\$"}
_item = re.compile(r"^- `(\w+)`: (.*?)(?=^- `|\Z)", re.MULTILINE | re.DOTALL)


def make_schema() -> dict[str, Any]:
    """Return the schema (2020-12), which takes what `Config.load` takes, whatever the environment holds."""
    schema = msgspec.json.schema(Config)
    sections: dict[str, Any] = schema["$defs"]
    for kind in sections_of(Config):
        section = sections[kind.__name__]
        about = describe(kind)
        section["description"] = about.pop("")
        for key, field in section["properties"].items():
            section["properties"][key] = _readable(field) | ({"description": about[key]} if key in about else {})
        if kind is not Endpoint:
            section["type"] = ["object", "null"]  # a section whose every line is commented out
    return {"$schema": _DIALECT, "title": "asgi-session-pin"} | schema


def sections_of(config: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Return the sections of a configuration, itself the first."""
    return [config, *(kind for field in msgspec.structs.fields(config) for kind in _structs(field.type))]


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for argument in typing.get_args(kind) for struct in _structs(argument)]


def describe(section: type[msgspec.Struct]) -> dict[str, str]:
    """Return what a section's docstring says of each of its keys, and of itself under ""."""
    text = inspect.getdoc(section) or ""
    about = {name: " ".join(words.split()) for name, words in _item.findall(text)}
    return {"": " ".join(text.partition("\n- `")[0].split())} | about


def _readable(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema in the words of JSON schema's regular expressions, and open to the environment."""
    if "$ref" in field:
        return {"$ref": field["$ref"]}
    if "pattern" in field:
        field = field | {"pattern": field["pattern"].replace(r"\Z", "$")}
    if field.get("type") == "array":
        return field | {"items": _readable(field["items"])}
    if field.get("type") == "object":
        return field | {"additionalProperties": _readable(field["additionalProperties"])}
    shown = {key: field[key] for key in ("default", "description") if key in field}
    choices = field.get("anyOf") or [{key: value for key, value in field.items() if key not in shown}]
    return shown | {"anyOf": [*map(_plain, choices), _TEMPLATE]}


def _plain(choice: dict[str, Any]) -> dict[str, Any]:
    return choice | {"pattern": choice["pattern"].replace(r"\Z", "$")} if "pattern" in choice else choice
