"""A folder whose results grow over several starts: what they depend on is written down, and must not change.

In: a folder and settings, as plain values. Out: settings.json in it, or an error that names what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simct_pl.errors import SimctError
from simct_pl.files.outputs import check_parent
from simct_pl.files.parquet import read_json, write_json

SETTINGS = "settings.json"


def keep_settings(folder: Path, settings: dict[str, Any], mismatch: type[SimctError]) -> None:
    """Write the settings down, or compare them with those that are there.

    Raises:
        mismatch: naming the first setting, by name, that another start had otherwise. ExportError: if the folder cannot
            be written to. PromptDataError: if its settings.json is no JSON.
    """
    # Through JSON and back, as the file's are: tuples become lists, keys texts, or they would never be equal.
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    check_parent(path)
    if not path.exists():
        write_json(path, settings)
        return
    # A key that one side lacks differs too: it was written by another version.
    found = read_json(path)
    differing = sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key))
    if differing:
        key = differing[0]
        raise mismatch(
            f"{str(folder)!r} holds responses with {key} = {found.get(key)!r:.80}; this run has "
            f"{settings.get(key)!r:.80}. Give another output folder, or remove that one."
        )
