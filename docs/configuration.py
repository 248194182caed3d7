"""Write the tables of docs/configuration.md from the code.

python docs/configuration.py
"""

import textwrap
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from sinlstm_dist.config import KEYS, SECTIONS
from sinlstm_dist.problems import show_value
from sinlstm_dist.run.identity import MAY_CHANGE
from sinlstm_dist.verify.bench import PATH

PAGE = Path(__file__).with_name("configuration.md")
BEGIN = "<!-- `python docs/configuration.py` writes the tables from here -->"
END = "<!-- to here -->"
KINDS = {int: "integer", float: "number", bool: "`true` or `false`", str: "string"}


def with_tables(page: str) -> str:
    """The text of the page with today's tables between the two markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    parts = [BEGIN, *map(table, SECTIONS), used_by_verify(), END]
    return before + "\n\n".join(parts) + after


def table(section: str) -> str:
    """The heading, the subject and the keys of one section."""
    model = SECTIONS[section]
    lines = [
        f"### {section}\n\n{model.__doc__}\n",
        "| key | default | allowed | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        key, default = f"{section}.{name}", show_value(field.default)
        meaning = str(field.description).replace("|", "\\|").replace("<", "&lt;")
        may_change = " (may change)" if key in MAY_CHANGE else ""
        lines.append(f"| `{key}` | `{default}` | {allowed(field)} | {meaning}{may_change} |")
    return "\n".join(lines)


def allowed(field: FieldInfo) -> str:
    """The values that a key takes, in words."""
    if get_origin(field.annotation) is Literal:
        *others, last = [f"`{show_value(value)}`" for value in get_args(field.annotation)]
        return f"{', '.join(others)} or {last}"
    if get_origin(field.annotation) is list:
        return "list of strings"
    limits = {
        name: f"{getattr(limit, name):,}"
        for limit in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(limit, name)
    }
    if {"ge", "le"} <= set(limits):
        words = [f"{limits['ge']} to {limits['le']}"]
    else:
        phrases = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        words = [f"{phrases[name]} {value}" for name, value in limits.items()]
    return ", ".join([KINDS.get(field.annotation, "string"), *words])


def used_by_verify() -> str:
    """The keys that `verify` takes from a configuration, in a sentence."""
    *others, last = [f"`{key}`" for key in KEYS if key in PATH]
    sentence = f"`verify` uses your values of {', '.join(others)} and {last}."
    return textwrap.fill(sentence, 105, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
