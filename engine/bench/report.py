"""How every benchmark reports: a table for people, json for comparison."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text columns, in the order in which their keys first come."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def target(subject: str, path: str | None) -> Path:
    """The json file of a result: as asked for, or named after its subject."""
    return Path(path or f"bench-{subject}.json")


def save(subject: str, result: Mapping[str, Any], path: str | None) -> Path:
    """Write a result with when and where it was measured; the path of the json file."""
    record = {
        "subject": subject,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        **result,
    }
    file = target(subject, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return file


class Record:
    """A result whose json is written anew with every row: what is measured is kept at once."""

    def __init__(self, subject: str, path: str | None, **result: Any) -> None:
        self.subject, self.path, self.result = subject, path, result

    def add(self, row: Mapping[str, Any], to: str = "rows") -> None:
        self.result.setdefault(to, []).append(row)
        self.save()

    def save(self) -> Path:
        return save(self.subject, self.result, self.path)
