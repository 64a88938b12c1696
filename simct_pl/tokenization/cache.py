"""Byte tables on disk: one npz a tokenizer, keyed by a hash of its definition, written atomically.

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
    """The arrays of a table, or None if there is no whole file."""
    try:
        with _path(fingerprint).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _NAMES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    num_tokens = len(arrays["offsets"]) - 1
    whole = len(arrays["buffer"]) == arrays["offsets"][-1] and len(arrays["is_mapped_V"]) == num_tokens
    return arrays if whole else None


def save(fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Write a table under its final name in one step, so that no reader and no crash ever sees half of it."""
    with contextlib.suppress(OSError), whole_file(_path(fingerprint)) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _path(fingerprint: str) -> Path:
    return cache_folder() / f"token-bytes-{fingerprint}.npz"
