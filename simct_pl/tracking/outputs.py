"""OutputWriter: a callback that leaves something to look at, and says where."""

from __future__ import annotations

from pathlib import Path

import lightning as L


class OutputWriter(L.Callback):
    """A callback that writes a file or a folder; the end of a fit names it.

    output: its path.
    """

    output: Path
