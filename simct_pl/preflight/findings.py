"""Finding: something that a preflight noticed, and how bad it is. The worst one is the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """Ordered by severity."""

    GO = 0
    CARE = 1
    STOP = 2

    @property
    def words(self) -> str:
        return {"GO": "go", "CARE": "go with care", "STOP": "stop"}[self.name]


@dataclass(frozen=True)
class Finding:
    """severity: what it alone would make of the verdict. text: what was seen, and what to do."""

    severity: Severity
    text: str


def verdict(findings: Iterable[Finding]) -> Severity:
    """The most severe of them; GO without any."""
    return max((finding.severity for finding in findings), default=Severity.GO)
