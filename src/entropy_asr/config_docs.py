"""The schema of experiments as pages: JSON schema for editors, docs/config.md for people.

entropy-asr config docs
"""

import json
from typing import get_args

from pydantic import BaseModel

from entropy_asr.config import Config


def json_schema() -> str:
    """The schema as JSON schema, for editors."""
    return json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def reference_page() -> str:
    """docs/config.md: a table a section, each key with its type, default and meaning."""
    lines = [
        "# Every key of a config",
        "",
        "Generated from `src/entropy_asr/config.py` by `entropy-asr config docs`; do not edit. Defaults are the paper's scale;",
        "**[P]** is printed in the papers, **[O]** is our own reading.",
    ]
    for path, model in _sections(Config, ""):
        lines += [
            "",
            f"## {path or 'top level'}",
            "",
            (model.__doc__ or "").strip().splitlines()[0],
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            if field.description is None:
                continue
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True), default=str)
            kind = str(
                model.model_json_schema()["properties"][name].get(
                    "type", "see below" if "dict" in str(field.annotation) else "value"
                )
            )
            lines.append(f"| `{name}` | {kind} | `{default}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _sections(model: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    """A section and those inside it, in the order of the file."""
    found = [(path, model)]
    for name, field in model.model_fields.items():
        nested = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        for section in nested:
            inner = f"{path}.{name}" if path else name
            found += _sections(section, inner if section is field.annotation else f"{inner}.<name>")
    return found
