"""YAML text in, plain values out; a scalar that the environment has a part in comes as a `Template`."""

import os
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

_MAX_DEPTH = 8  # of what a fault can be about; the settings have half of it
_MAX_LINES = 10_000
_MERGE = "tag:yaml.org,2002:merge"
_quoted = re.compile(r"'[^']*'|\"[^\"]*\"")


class YAMLFault(ValueError):
    """The text can't be read; the message never holds a line of it, which could be a secret."""


def load_yaml(text: bytes) -> Any:
    """Return what *text* holds; scalars with a `$` come as `Template`. Raises YAMLFault."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        problem = _quoted.sub(_without_names, ", ".join(filter(None, (error.context, error.problem))))
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YAMLFault(f"{line}not valid YAML: {problem}") from None
    except RecursionError:
        raise YAMLFault("nested too deep") from None
    except yaml.YAMLError:
        raise YAMLFault("not valid YAML: it holds bytes or characters that YAML does not allow") from None
    except Exception:  # PyYAML lets out whatever int(), float() and date() raise
        raise YAMLFault("not valid YAML: a number, a date or a tagged value that is none") from None


def locate(text: bytes) -> dict[tuple[str, ...], int]:
    """Return the line of each key and of each item of a list in *text*, which `load_yaml` can read."""
    loader = _Loader(text)
    lines: dict[tuple[str, ...], int] = {}
    left: list[tuple[tuple[str, ...], yaml.Node | None]] = [((), loader.get_single_node())]
    while left and len(lines) < _MAX_LINES:
        path, node = left.pop()
        if len(path) == _MAX_DEPTH:  # an anchor may stand for itself, without end
            continue
        members: list[tuple[yaml.Node, str, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            members = [(key, str(key.value), value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            members = [(item, str(index), item) for index, item in enumerate(node.value)]
        for mark, name, value in members:
            lines[*path, name] = mark.start_mark.line + 1
            left.append(((*path, name), value))
    return lines


def _without_names(found: re.Match[str]) -> str:
    """Leave characters and kinds of tokens: the name of a tag or an alias may be a secret that has no quotes."""
    return found[0] if len(found[0]) <= 4 or found[0][1] == "<" else "..."


class _Loader(yaml.SafeLoader):
    def construct_template(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        return Template(text, plain=node.style is None) if "$" in text else text

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Write `<<` out as YAML 1.1 says: own keys win, and of a list its first mapping.

        What PyYAML makes of a list depends on its version, and it takes a key that stands there twice.
        """
        own: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = id(key) if not isinstance(key, yaml.ScalarNode) else _MERGE if key.tag == _MERGE else key.value
            if name in own:
                raise ConstructorError(None, None, "a key stands there a second time", key.start_mark)
            own[name] = key, value
        merge = own.pop(_MERGE, None)
        if merge is None:
            return
        merged: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        sources = merge[1].value if isinstance(merge[1], yaml.SequenceNode) else [merge[1]]
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                problem = "<< stands before something that is no mapping, nor a list of mappings"
                raise ConstructorError(None, None, problem, source.start_mark)
            self.flatten_mapping(source)
            merged |= {key.value: (key, value) for key, value in source.value}
        node.value = list((merged | own).values())


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_template)


class Template(str):
    """A scalar with a `$` in it; a plain one has no quotes."""

    plain: bool

    def __new__(cls, text: str, *, plain: bool) -> "Template":
        template = super().__new__(cls, text)
        template.plain = plain
        return template

    def fill(self) -> tuple[Any, ...]:
        """Return what it may be read as, with `${NAME}`, `${NAME:-default}` and `$$` filled in. Raises YAMLFault.

        A plain one is what YAML makes of the text, or else, where a key takes no such thing, the text.
        """
        text = _variable.sub(_fill, self)
        return (_scalar(text), text) if self.plain else (text,)


_variable = re.compile(r"\$(?:\$|\{([^}]*)(\}?))")
_variable_name = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def _fill(found: re.Match[str]) -> str:
    if found[0] == "$$":
        return "$"
    parts = _variable_name.fullmatch(found[1])
    if parts is None or not found[2]:
        raise YAMLFault("found a ${ that is not ${NAME} or ${NAME:-default}; a plain dollar sign is $$")
    name, default = parts.groups()
    value = os.environ.get(name)
    if default is not None:
        if "${" in default:
            raise YAMLFault(f"the default of ${{{name}:-...}} holds another variable, which is not filled in")
        return value or default.replace("$$", "$")  # as in a shell, an empty variable takes the default too
    if value is None:
        raise YAMLFault(f"the environment variable {name} is not set")
    return value


def _scalar(text: str) -> Any:
    loader: Any = yaml.SafeLoader("")
    node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
    try:
        return loader.construct_object(node)
    except Exception:  # it looks like something else (a date, a number, a merge key) and is none
        return text


def dump_yaml(value: Any) -> str:
    """Return *value* as YAML text that `load_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text.replace("$", "$$"))

    def represent_number(self, number: float) -> yaml.ScalarNode:
        return self.represent_int(int(number)) if number.is_integer() else super().represent_float(number)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(float, _Dumper.represent_number)
