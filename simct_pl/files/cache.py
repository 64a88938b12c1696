"""Where things are kept that only save time: anything in it can be removed, and is made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """SIMCT_PL_CACHE if it is set; otherwise simct_pl in the user's cache folder. It need not exist."""
    if chosen := os.environ.get("SIMCT_PL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simct_pl"
