"""Token id → exact bytes, for every tokenizer family whose tokens have exact bytes.

In: a fast tokenizer. Out: TokenBytes, one flat buffer and offsets, so that a whole response is joined by one gather.
Decoding tokens one by one is wrong wherever a character is split over tokens; these tables are not. families.py has
the rules, cache.py keeps the tables on disk.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from simct_pl.errors import TokenizerError
from simct_pl.tokenization import cache as table_cache
from simct_pl.tokenization.families import read_token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def as_text(data: bytes) -> str | None:
    """What some bytes spell; None for half a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def as_bytes(text: str) -> bytes:
    """A text in UTF-8, which is what tokenizers read.

    Raises:
        TokenizerError: for half a character (a surrogate without its other half: JSON and Python can hold one, UTF-8
            cannot), and for what is no text at all.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"{text!r:.80} is no text; expected a str.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has half a character ({text[error.start]!r}) at {error.start}: a surrogate without its other "
            "half, which no tokenizer reads. Mend it: "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from error


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """The bytes of every token of one tokenizer (V = table size here: largest id + 1).

    buffer: uint8, all tokens' bytes one after another. offsets: int64 [V + 1], token i is
    buffer[offsets[i]:offsets[i + 1]]. is_special_V: control tokens (`<s>`, `<|im_end|>`) and the unknown token;
    their bytes are no text. is_fallback_V: `<0xHH>` tokens of a byte-fallback vocabulary, often a second id for
    bytes that another token has. is_mapped_V: whether the id has bytes at all; False for holes in the vocabulary and
    for the unknown token. dummy_prefix: the tokenizer puts a space in front of a text that is not part of it.
    fingerprint: hash of the tokenizer's definition; equal fingerprints mean equal tables, but for their lengths.
    """

    buffer: np.ndarray
    offsets: np.ndarray
    is_special_V: np.ndarray
    is_fallback_V: np.ndarray
    is_mapped_V: np.ndarray
    dummy_prefix: bool
    fingerprint: str

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast, cache: bool = True) -> TokenBytes:
        """The table of a tokenizer, from the disk cache when there is one.

        Raises:
            UnsupportedTokenizerError: for a family whose tokens have no exact bytes, such as WordPiece.
        """
        definition = tokenizer.backend_tokenizer.to_str()
        # A tokenizer_config.json can make tokens special that tokenizer.json does not mark.
        special_ids = sorted(tokenizer.all_special_ids)
        fingerprint = table_cache.fingerprint(definition, special_ids)
        if cache and (arrays := table_cache.load(fingerprint)) is not None:
            dummy_prefix = bool(arrays.pop("dummy_prefix"))
            return cls(**arrays, dummy_prefix=dummy_prefix, fingerprint=fingerprint)
        read = read_token_bytes(definition)
        table = cls._pack(
            read.tokens, read.special_ids | set(special_ids), read.fallback_ids, read.dummy_prefix, fingerprint
        )
        if cache:
            table_cache.save(fingerprint, {**table._arrays(), "dummy_prefix": np.array(table.dummy_prefix)})
        return table

    @classmethod
    def from_list(
        cls,
        tokens: Sequence[bytes | None],
        special_ids: Iterable[int] = (),
        fallback_ids: Iterable[int] = (),
        dummy_prefix: bool = False,
    ) -> TokenBytes:
        """A table of a synthetic vocabulary; None marks an id without bytes."""
        special_ids, fallback_ids = sorted(special_ids), sorted(fallback_ids)
        definition = repr((list(tokens), special_ids, fallback_ids, dummy_prefix)).encode()
        return cls._pack(tokens, special_ids, fallback_ids, dummy_prefix, hashlib.blake2b(definition).hexdigest())

    @classmethod
    def _pack(
        cls,
        tokens: Sequence[bytes | None],
        special_ids: Iterable[int],
        fallback_ids: Iterable[int],
        dummy_prefix: bool,
        fingerprint: str,
    ) -> TokenBytes:
        present = [token or b"" for token in tokens]
        lengths = np.fromiter(map(len, present), np.int64, len(present))
        flags = np.zeros((2, len(present)), bool)
        for flag_V, ids in zip(flags, (special_ids, fallback_ids), strict=True):
            flag_V[[token_id for token_id in ids if token_id < len(present)]] = True
        return cls(
            buffer=np.frombuffer(b"".join(present), np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            is_special_V=flags[0],
            is_fallback_V=flags[1],
            is_mapped_V=np.fromiter((token is not None for token in tokens), bool, len(present)),
            dummy_prefix=dummy_prefix,
            fingerprint=fingerprint,
        )

    def up_to(self, num_ids: int | None) -> TokenBytes:
        """The table of the first ids alone: a model has no row for the others, and can neither read nor sample them."""
        if num_ids is None or num_ids >= len(self):
            return self
        flags = {name: getattr(self, name)[:num_ids] for name in ("is_special_V", "is_fallback_V", "is_mapped_V")}
        offsets = self.offsets[: num_ids + 1]
        return replace(self, buffer=self.buffer[: offsets[-1]], offsets=offsets, **flags)

    def _arrays(self) -> dict[str, np.ndarray]:
        names = ("buffer", "offsets", "is_special_V", "is_fallback_V", "is_mapped_V")
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self):
            raise IndexError(f"token id {token_id} is outside the table of {len(self)} tokens")
        return self.buffer[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    @cached_property
    def lengths_V(self) -> np.ndarray:
        """Bytes of each token, int64 [V]."""
        return np.diff(self.offsets)

    @cached_property
    def tokens(self) -> list[bytes]:
        """All tokens as a list; made once, for dictionaries and sorting."""
        whole, edges = self.buffer.tobytes(), self.offsets.tolist()
        return [whole[start:end] for start, end in itertools.pairwise(edges)]

    @cached_property
    def is_text_V(self) -> np.ndarray:
        """Whether each token stands for text: it has bytes, and is not special; bool [V]."""
        return self.is_mapped_V & ~self.is_special_V & (self.lengths_V > 0)

    def ids_by_bytes(self, without: Iterable[int] = ()) -> dict[bytes, int]:
        """Bytes → the id that means them as text.

        Several ids may have the same bytes: an ordinary token wins over its byte-fallback twin, then the lower id.
        without: ids that are left out.
        """
        is_text_V = self.is_text_V.copy()
        is_text_V[[token_id for token_id in without if token_id < len(self)]] = False
        ordinary, fallback = (
            np.flatnonzero(is_text_V & ~self.is_fallback_V),
            np.flatnonzero(is_text_V & self.is_fallback_V),
        )
        # Later entries of a dictionary overwrite earlier ones: worst candidate first.
        return {self.tokens[i]: i for i in np.concatenate([fallback[::-1], ordinary[::-1]]).tolist()}

    def known(self, ids_N: np.ndarray) -> np.ndarray:
        """Which ids have bytes, bool [N]; False for ids beyond the table (rows of a padded embedding)."""
        if not len(ids_N) or (ids_N.min() >= 0 and ids_N.max() < len(self)):
            return self.is_mapped_V.take(ids_N)
        inside_N = (ids_N >= 0) & (ids_N < len(self))
        return inside_N & self.is_mapped_V[np.where(inside_N, ids_N, 0)]

    def gather(self, ids_N: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The joined bytes of some known ids, and where each token ends in them (int64 [N])."""
        lengths_N = self.lengths_V.take(ids_N)
        ends_N = np.cumsum(lengths_N)
        # Byte k of the result is byte k - (start of its token) of that token: one shift a token, repeated over its
        # bytes.
        places = np.repeat(self.offsets.take(ids_N) - ends_N + lengths_N, lengths_N)
        places += np.arange(len(places))
        return self.buffer.take(places).tobytes(), ends_N

    def join(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of a sequence of ids, a dummy prefix included.

        Raises:
            IndexError: for an id beyond the table.
        """
        return self.gather(np.asarray(ids, np.int64))[0]
