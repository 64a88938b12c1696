"""Whether a prompt file is still the one that a run began with: its size and hash, remembered in checkpoints."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from simct_pl.errors import PromptDataError


@dataclass(frozen=True)
class FileFingerprint:
    """num_bytes, sha256: of a file's content."""

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> FileFingerprint:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(os.fstat(file.fileno()).st_size, digest)


class WatchedFile:
    """A file that must not change while it is read. Size and time are looked at; the content only when they differ."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stat = self._look()
        self.fingerprint = FileFingerprint.of(path)

    def check(self) -> None:
        """Compare the file with what it was.

        Raises:
            PromptDataError: if its content is another one.
        """
        stat = self._look()
        if stat == self._stat:
            return
        if not os.path.isfile(self.path) or FileFingerprint.of(self.path) != self.fingerprint:
            raise PromptDataError(
                f"Prompt file {self.path!r} changed while the run reads it. Prompts are known by their row: put the "
                "file back and continue with --resume, or start a new run."
            )
        self._stat = stat  # only touched, or copied back

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns
