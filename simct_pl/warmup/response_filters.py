"""Filters of sampled responses: a response in, whether it is fit to learn from. A variant is a class, swapped by
class_path; what a filter drops is counted under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

from typing_extensions import override

from simct_pl.data.words import ngrams
from simct_pl.errors import RecipeError
from simct_pl.warmup.responses import Response


class ResponseFilter(ABC):
    """Says which responses may be selected, whatever their verdict.

    reason: why a response was dropped, as the report counts it.
    """

    reason: str

    @abstractmethod
    def __call__(self, response: Response) -> bool:
        """Whether the response stays."""


class NotTruncated(ResponseFilter):
    """Drops what was cut at the length limit: a student would learn not to end."""

    reason = "truncated"

    @override
    def __call__(self, response: Response) -> bool:
        return response.finish_reason == "stop"


class LengthBetween(ResponseFilter):
    """Keeps responses of min_tokens to max_tokens of the model that wrote them, stop included."""

    reason = "length"

    def __init__(self, min_tokens: int = 2, max_tokens: int = 4096) -> None:
        if not 0 <= min_tokens <= max_tokens:
            raise RecipeError(f"min_tokens={min_tokens}, max_tokens={max_tokens}; expected 0 <= min <= max.")
        self.min_tokens, self.max_tokens = min_tokens, max_tokens

    @override
    def __call__(self, response: Response) -> bool:
        return self.min_tokens <= response.num_tokens <= self.max_tokens


class NotRepetitive(ResponseFilter):
    """Drops responses in which a run of num_words words (split at white space) comes more than max_times times.

    Long calculations repeat a line once or twice; a model that has lost its way repeats it until it is stopped.
    """

    reason = "repetitive"

    def __init__(self, num_words: int = 10, max_times: int = 2) -> None:
        if num_words < 1 or max_times < 1:
            raise RecipeError(f"num_words={num_words}, max_times={max_times}; expected at least 1.")
        self.num_words, self.max_times = num_words, max_times

    @override
    def __call__(self, response: Response) -> bool:
        counts = Counter(ngrams(response.response.split(), self.num_words))
        return max(counts.values(), default=0) <= self.max_times


class NoReplacementCharacter(ResponseFilter):
    """Drops responses with bytes that are no UTF-8, which were decoded to U+FFFD."""

    reason = "broken_utf8"

    @override
    def __call__(self, response: Response) -> bool:
        return "\N{REPLACEMENT CHARACTER}" not in response.response
