"""Plain values (of a YAML file or a dict) into msgspec structs, with every fault named by its dotted path."""

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from .yaml import Template, YAMLFault, locate

StructT = TypeVar("StructT", bound=msgspec.Struct)

# What stands under these names is never shown.
SECRETS = frozenset({"secret", "token", "url"})
_credentials = re.compile(r"(?<!/)//[^/\s:@]*:[^/\s]*@")  # of a URL (RFC 3986, section 3.2.1)
_RENAMED = {"limits.max_waiting_bytes": "max_buffered_bytes", "gateway.health_path": "admin.path"}  # keys of before
_UNITS = ("_seconds", "_bytes", "")  # which are easily left out


class Fault(NamedTuple):
    """What is wrong with a setting."""

    path: str  # dotted, "" for all of it
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.path else self.what


def read_settings(kind: type[StructT], value: Any) -> tuple[StructT | None, list[Fault]]:
    """Return *value* as a *kind* and no fault, or None and all faults."""
    reader = _Reader()
    settings = reader.read(kind, value, "")
    return (None if reader.faults else settings), reader.faults


def with_lines(faults: Iterable[Fault], text: bytes) -> list[str]:
    """Return what *faults* say, in the order of the YAML *text* that they are about, with the number of the line."""
    lines = {".".join(map(_key, path)): line for path, line in locate(text).items()}
    numbered = [(_line(fault.path, lines), str(fault)) for fault in faults]
    return [f"{said} (line {line})" if line else said for line, said in sorted(numbered, key=lambda each: each[0])]


def _line(path: str, lines: Mapping[str, int]) -> int:
    """Return the line of *path*, or of what it would be in; 0 for what is nowhere."""
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path, 0)


class _Reader:
    """Builds settings; what can't be used becomes a fault, and the reading goes on."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def read(self, kind: Any, written: Any, path: str) -> Any:
        try:
            readings = written.fill() if isinstance(written, Template) else (written,)
        except YAMLFault as fault:
            return self._fault(path, str(fault))
        value = readings[0]
        shape = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
        if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
            return self._read_struct(shape, value, path)
        if typing.get_origin(shape) is dict and isinstance(value, Mapping):
            return self._read_mapping(shape, value, path)
        if typing.get_origin(shape) is tuple and isinstance(value, list | tuple) and value:
            return tuple(self.read(shape.__args__[0], item, _join(path, index)) for index, item in enumerate(value))
        for reading in readings:
            try:
                converted = msgspec.convert(reading, kind)
                _check(kind, converted)
                return converted
            except (ValueError, OverflowError):
                pass
        return self._unexpected(path, written, value, expected(kind))

    def _read_struct(self, kind: type[msgspec.Struct], value: Any, path: str) -> Any:
        if value is None:  # a section whose every line is commented out
            value = {}
        if isinstance(value, kind):
            value = msgspec.structs.asdict(value)
        if not isinstance(value, Mapping):
            return self._fault(path, f"found {kind_of(value)}, expected a mapping")
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        for key in value:
            if _join(path, key) in _RENAMED:
                new = _RENAMED[_join(path, key)]
                self._fault(_join(path, key), f"is no key any longer, expected {new!r} in its place")
            elif key not in fields:
                spellings = {name.removesuffix(unit): name for unit in _UNITS for name in fields}
                similar = difflib.get_close_matches(_key(key), spellings, 1)
                hint = f"did you mean {spellings[similar[0]]!r}?" if similar else f"expected one of {', '.join(fields)}"
                self._fault(_join(path, key), f"unknown key, {hint}")
        read: dict[str, Any] = {}
        for name, field in fields.items():
            if name in value:
                read[name] = self.read(field.type, value[name], _join(path, name))
            elif field.required:
                self._fault(_join(path, name), f"missing, expected {expected(field.type)}")
        return None if self.faults else kind(**read)

    def _read_mapping(self, kind: Any, value: Mapping[Any, Any], path: str) -> Any:
        name_kind, target_kind = typing.get_args(kind)
        read: dict[Any, Any] = {}
        for key, item in value.items():
            name, target = self.read(name_kind, key, path), self.read(target_kind, item, _join(path, key))
            if isinstance(name, str) and isinstance(target, str) and target.count("*") > name.count("*"):
                self._unexpected(_join(path, key), item, target, "no more * than in the name")
            read[name] = target
        return read

    def _unexpected(self, path: str, written: Any, value: Any, wanted: str) -> None:
        if path.rpartition(".")[2] in SECRETS:
            found = kind_of(value)
        elif isinstance(written, Template):  # what the environment holds may be a secret
            found = f"{_shown(str(written))}, filled in as {kind_of(value)}"
        else:
            found = _shown(value)
        self._fault(path, f"found {found}, expected {wanted}")

    def _fault(self, path: str, what: str) -> None:
        self.faults.append(Fault(path, what))


def _check(kind: Any, value: Any) -> None:
    """Raise ValueError for what a setting's own check does not take."""
    if typing.get_origin(kind) is typing.Annotated and kind.__metadata__[0].extra:
        kind.__metadata__[0].extra["check"](value)


def expected(kind: Any) -> str:
    """Return in words what a setting of type *kind* takes."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        return str(kind.__metadata__[0].description)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in arguments)
    if typing.get_origin(kind) is tuple:
        return f"a list, each item {expected(arguments[0])}"
    if typing.get_origin(kind) is not dict and arguments:  # a union
        return " or ".join(map(expected, arguments))
    return {bool: "true or false", type(None): "null", str: "a string"}.get(kind, "a mapping of name to name")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping | list | tuple):
        return kind_of(value)
    text = str(without_credentials(repr(value) if isinstance(value, str) else str(value)))
    return text if len(text) <= 80 else f"{text[:77]}..."


def without_credentials(value: Any) -> Any:
    """Return settings with user and password masked in every URL, wherever it stands."""
    if isinstance(value, str):
        return _credentials.sub("//***@", value)
    if isinstance(value, dict):
        return {without_credentials(key): without_credentials(item) for key, item in value.items()}
    return [without_credentials(item) for item in value] if isinstance(value, list | tuple) else value


def kind_of(value: Any) -> str:
    """Return what a value is, without what is in it."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _key(key: object) -> str:
    """Return a key as it is shown: where a space was forgotten (`secret:xyz`), it can hold a secret."""
    return str(key) if re.fullmatch(r"(header:)?[\w.*/@${}-]{1,80}", str(key)) else "?"


def _join(path: str, key: object) -> str:
    return f"{path}.{_key(key)}" if path else _key(key)
