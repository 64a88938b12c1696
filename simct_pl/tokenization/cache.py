"""What is made of tokenizers alone, on disk: one npz each, keyed by a hash of the definitions, written atomically.

The cache only saves time. A broken file is rebuilt, a folder that cannot be written is no error. SIMCT_PL_CACHE
names the folder; otherwise it is the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simct_pl.files.atomic import whole_file
from simct_pl.files.cache import cache_folder

FORMAT_VERSION = 1
_NAMES = ("buffer", "offsets", "is_special_V", "is_fallback_V", "is_mapped_V", "dummy_prefix")


def fingerprint(definition: str, special_ids: Sequence[int]) -> str:
    """Hash of everything that a table depends on, the rules of this version included."""
    digest = hashlib.blake2b(definition.encode(), digest_size=16)
    digest.update(repr((FORMAT_VERSION, list(special_ids))).encode())
    return digest.hexdigest()


def load(fingerprint: str) -> dict[str, np.ndarray] | None:
    """The arrays of a byte table, or None if there is no whole file."""
    arrays = load_arrays("token-bytes", fingerprint, _NAMES)
    if arrays is None:
        return None
    num_tokens = len(arrays["offsets"]) - 1
    whole = len(arrays["buffer"]) == arrays["offsets"][-1] and len(arrays["is_mapped_V"]) == num_tokens
    return arrays if whole else None


def save(fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep the arrays of a byte table."""
    save_arrays("token-bytes", fingerprint, arrays)


def load_arrays(kind: str, fingerprint: str, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Arrays by name, or None if there is no whole file. kind: begins the file's name."""
    try:
        with _path(kind, fingerprint).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_arrays(kind: str, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays under their final name in one step, so that no reader and no crash ever sees half of them."""
    with contextlib.suppress(OSError), whole_file(_path(kind, fingerprint)) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def remove(kind: str, fingerprint: str) -> Path | None:
    """Remove what was kept under a name; its path, if there was something that could be removed."""
    path = _path(kind, fingerprint)
    try:
        path.unlink()
    except OSError:
        return None
    return path


def _path(kind: str, fingerprint: str) -> Path:
    return cache_folder() / f"{kind}-{fingerprint}.npz"
