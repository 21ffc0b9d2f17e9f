"""YAML text in, plain values out: with environment variables filled in and with bounds on what a file can cost."""

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

MAX_BYTES = 262_144  # PyYAML needs seconds for a megabyte of the wrong kind
MAX_VALUES = 100_000  # after every alias is written out


class YAMLFault(ValueError):
    """The text can't be read; the message never holds a line of it, which could be a secret."""


def load_yaml(text: bytes) -> Any:
    """Return what *text* holds; scalars with a `$` come as `Template`. Raises YAMLFault."""
    if len(text) > MAX_BYTES:
        raise YAMLFault(f"found more than {MAX_BYTES:,} bytes, which no settings need")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _prepare(node, {})
        return loader.construct_document(node)
    except YAMLFault:
        raise
    except RecursionError:
        raise YAMLFault("nested too deep") from None
    except (ScannerError, ParserError) as error:
        raise YAMLFault(f"{_line(error.problem_mark)}not valid YAML: {_problem(error)}") from None
    except ComposerError as error:
        second = "document" in str(error.problem)
        problem = "a second document" if second else "an alias or an anchor that is not there or there twice"
        raise YAMLFault(f"{_line(error.problem_mark)}{problem}") from None
    except ConstructorError as error:
        raise YAMLFault(f"{_line(error.problem_mark)}a value or a tag that has no place in settings") from None
    except yaml.YAMLError:
        raise YAMLFault("not valid YAML: it holds bytes or characters that YAML does not allow") from None
    except Exception:  # PyYAML lets out whatever int(), float() and date() raise
        raise YAMLFault("not valid YAML: a number, a date or a tagged value that is none") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong, without words of the file: it quotes tags, which may be a secret without quotes."""
    problem = str(error.problem)
    return "a tag that is not known" if "tag" in problem else problem


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


class Template(str):
    """A scalar with a `$` in it. A plain one (without quotes) becomes what YAML makes of the text filled in."""

    plain: bool

    def fill(self, environment: Mapping[str, str] = os.environ) -> Any:
        """Return the value with `${NAME}`, `${NAME:-default}` and `$$` filled in. Raises YAMLFault."""
        text = _variable.sub(lambda found: _fill(found, environment), self)
        return _scalar(text) if self.plain else text


_variable = re.compile(r"\$(?:\$|\{([^}]*)(\}?))")
_variable_name = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def _fill(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    parts = _variable_name.fullmatch(found[1])
    if parts is None or not found[2]:
        raise YAMLFault("found a ${ that is not ${NAME} or ${NAME:-default}; a plain dollar sign is $$")
    name, default = parts.groups()
    value = environment.get(name)
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


class _Loader(yaml.SafeLoader):
    def construct_template(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if "$" not in text:
            return text
        template = Template(text)
        template.plain = node.style is None
        return template


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_template)


def _prepare(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Write merge keys out, and return how many values *node* stands for.

    A node that an alias repeats is looked at once and counts each time.
    """
    if id(node) in sizes:
        size = sizes[id(node)]
        if size == 0:
            raise YAMLFault(f"{_line(node.start_mark)}an alias stands inside what it names")
        return size
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(_prepare(key, sizes) + _prepare(value, sizes) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_prepare(item, sizes) for item in node.value)
    else:
        size += len(node.value) // 64  # a long text that aliases repeat is not for free either
    if size > MAX_VALUES:
        raise YAMLFault(f"{_line(node.start_mark)}its aliases expand to more than {MAX_VALUES:,} values")
    if isinstance(node, yaml.MappingNode):
        _write_out_merges(node)  # those of its parts are written out by now, and what they are copied from is bounded
    sizes[id(node)] = size
    return size


def _write_out_merges(node: yaml.MappingNode) -> None:
    """Put what `<<` names in its place as YAML 1.1 says: own keys win, and of a list its first mapping.

    PyYAML finds none to write out then: what it makes of a list depends on its version.
    """
    own, merged = [], []
    for key, value in node.value:
        if key.tag != "tag:yaml.org,2002:merge":
            own.append((key, value))
            continue
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for source in reversed(sources):  # of equal keys the last one is taken
            if not isinstance(source, yaml.MappingNode):
                line = _line(source.start_mark)
                raise YAMLFault(f"{line}<< stands before something that is no mapping, nor a list of mappings")
            merged += source.value
    node.value = merged + own


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise YAMLFault(f"{_line(key.start_mark)}a key stands there a second time")
            seen.add(key.value)


def _line(mark: Any) -> str:
    return "" if mark is None else f"line {mark.line + 1}: "
