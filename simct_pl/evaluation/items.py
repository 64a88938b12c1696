"""Graded responses on disk: written line by line as they come, read again when an evaluation goes on.

folder/<benchmark>/settings.json       what the responses depend on
folder/<benchmark>/items-<rank>.jsonl  one graded response a line
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simct_pl.errors import EvaluationError
from simct_pl.evaluation.scores import Item
from simct_pl.files.parquet import read_json
from simct_pl.files.settings import SETTINGS, keep_settings

NOT_KNOWN_BEFORE = ("policy_version",)

logger = logging.getLogger(__name__)


class ItemStore:
    """The items of one benchmark.

    Args:
        folder: of the evaluation. benchmark: its name. settings: model, sampling and the like; plain values.
        rank: which of several processes writes; each reads what all have written.

    Raises:
        EvaluationError: if the folder holds another evaluation's items. ExportError: if it cannot be written.
    """

    def __init__(self, folder: Path, benchmark: str, settings: dict[str, Any], rank: int = 0) -> None:
        self.folder = folder / benchmark
        self.path = self.folder / f"items-{rank}.jsonl"
        keep_settings(self.folder, settings, EvaluationError)

    @staticmethod
    def check(folder: Path, benchmark: str, settings: dict[str, Any]) -> None:
        """Compare settings with those of the items that are there, if any; nothing is written.

        settings: without what is known only when weights are loaded (NOT_KNOWN_BEFORE).

        Raises:
            EvaluationError: as on construction.
        """
        path = folder / benchmark / SETTINGS
        if path.is_file():
            found = read_json(path)
            keep_settings(path.parent, settings | {name: found.get(name) for name in NOT_KNOWN_BEFORE}, EvaluationError)

    def read(self) -> list[Item]:
        """All items so far; a last line that was cut short is taken out of its file, so that it is done again. So are
        items that are damaged, with a warning.
        """
        items = []
        for path in sorted(self.folder.glob("items-*.jsonl")):
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if path == self.path and len(whole) < len(content):
                os.truncate(path, len(whole))
            found = [_item(line) for line in whole.splitlines()]
            items += [item for item in found if item is not None]
            if num_lost := found.count(None):
                logger.warning("%s is damaged: %d of its %d items are done again.", path, num_lost, len(found))
        return items

    def add(self, items: Iterable[Item]) -> None:
        """Write items down."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(item)) + "\n" for item in items)


def _item(line: bytes) -> Item | None:
    """A line's item; None if there is none in it any more."""
    try:
        item = Item(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (item.seed_index, item.sampling_seed, item.num_tokens, item.score)
    texts = (item.problem, item.response, item.finish_reason, item.reason, item.detail)
    is_whole = all(isinstance(n, int | float) for n in numbers) and all(isinstance(text, str) for text in texts)
    return item if is_whole else None
