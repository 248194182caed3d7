"""Make the labels `Collective:` and `Source:` of docstrings bold, like `Returns:`."""

import re
from typing import Any

import griffe


class Labels(griffe.Extension):
    """What mkdocstrings loads; see mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one docstring."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^(Collective|Source):", r"**\1:**", text, flags=re.M)
