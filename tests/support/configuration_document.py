"""docs/configuration.md, which is written from the docstrings of the settings. `scripts/configuration` writes it."""

import json
import sys
from pathlib import Path

import msgspec

from asgi_session_pin import Config, Endpoint
from asgi_session_pin.config.reading import expected
from asgi_session_pin.config.schema import describe, sections_of
from written_documents import write_or_check

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "configuration.md"
_SHOWN = 80  # a longer default is looked up

OPENING = """\
# Configuration

Every key is optional; [`examples/session_pin.yaml`](../examples/session_pin.yaml) has all of them with their defaults,
ready to be cut down. A list that is given **replaces** the default. Values can come from the environment: `${NAME}`, or
`${NAME:-default}`; a plain dollar sign is `$$`. What can't be used fails at start-up, all faults at once, each with its
key, its line, what was found and what was expected.

```sh
asgi-session-pin check session_pin.yaml           # what a file sets, or what is wrong with it
asgi-session-pin schema >session_pin.schema.json  # for editors that read JSON schemas
```

In Python each section is a class: `Config(routing=Routing(session_ttl_seconds=1800))`. Defaults stand in brackets.
"""


def write_document() -> str:
    """Return the document."""
    parts = [OPENING]
    config, *sections = sections_of(Config)
    values = {type(value): (name, value) for name, value in msgspec.structs.asdict(Config()).items()}
    for section in sections:
        name, value = values.get(section, ("endpoints", Endpoint(path="*")))
        parts.append(f"\n## {name}\n\n{describe(section)['']}\n\n{_items(section, value)}")
    parts.append(f"\n## Beside the sections\n\n{_items(config, Config())}")
    return "".join(parts)


def _items(section: type[msgspec.Struct], values: msgspec.Struct) -> str:
    about = describe(section)
    items = []
    for field in msgspec.structs.fields(section):
        if field.name in about:
            default = json.dumps(msgspec.to_builtins(getattr(values, field.name)))
            if len(default) > _SHOWN:
                default = "see the example"
            told = "" if field.required else f" (`{default}`)" if default[0] != "s" else f" ({default})"
            items.append(f"- **`{field.name}`**{told}: {about[field.name]} Takes {expected(field.type)}.\n")
    return "".join(items)


def main(arguments: list[str]) -> None:
    fault = "docs/configuration.md is not what the settings say of themselves; scripts/configuration writes it"
    write_or_check(DOCUMENT, write_document(), arguments, fault=fault)


if __name__ == "__main__":
    main(sys.argv[1:])
