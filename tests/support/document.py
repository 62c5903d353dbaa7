"""Running the code blocks of a document, their imports rewritten to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_blocks(document: Path, language: str = "python") -> list[str]:
    """The fenced blocks of one language, in order."""
    return [code for kind, code in _BLOCK.findall(document.read_text(encoding="utf-8")) if kind == language]


def with_our_imports(code: str, modules: Mapping[str, str]) -> str:
    """The same code; `from THEIRS import NAME` becomes `from OURS import NAME` by `modules["THEIRS.NAME"]` or `["THEIRS"]`."""

    def rewritten(match: re.Match[str]) -> str:
        theirs, names = match.groups()
        lines = []
        for name in (part.strip() for part in names.split(",")):
            ours = modules.get(f"{theirs}.{name}") or modules.get(theirs, theirs)
            lines.append(f"from {ours} import {name}")
        return "\n".join(lines)

    return re.sub(r"^from ([\w.]+) import (.+)$", rewritten, code, flags=re.MULTILINE)
