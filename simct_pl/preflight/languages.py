"""Small languages: some texts with their probabilities, each about one thing that tokenizers cut differently.

All texts of a language begin alike, so that nothing is said of the place where a tokenizer may put a dummy space.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

Language = Mapping[str, float]
Choice = Mapping[str, float]


def language(*choices: Choice) -> dict[str, float]:
    """Texts that make one choice after another, independently."""
    return {
        "".join(text for text, _ in made): math.prod(p for _, p in made)
        for made in itertools.product(*(choice.items() for choice in choices))
    }


LANGUAGES: dict[str, Language] = {
    "numbers": language(
        {"n= ": 1.0},
        {"202": 0.2, "203": 0.1, "20": 0.1, "1024": 0.15, "1025": 0.05, "7": 0.1, "2,500": 0.1, "2500": 0.1, "99": 0.1},
        {".": 1.0},
    ),
    "words": language(
        {"So:": 1.0},
        {" aggregations": 0.4, " aggregate": 0.3, " the": 0.3},
        {" unbelievable": 0.3, " unlikely": 0.3, " overfits": 0.4},
        {" results": 0.5, " tokenizations": 0.5},
        {".": 1.0},
    ),
    "indented code": language(
        {"if x:\n": 1.0},
        {"    ": 0.6, "        ": 0.25, "  ": 0.1, "\t": 0.05},
        {"return x": 0.3, "pass": 0.2, "x = 1": 0.15, "# done": 0.15, '"""doc"""': 0.1, "for i in x:": 0.1},
        {"\n": 1.0},
    ),
    "line breaks": language(
        {"So a": 1.0}, {"\n": 0.35, "\n\n": 0.25, "\n\n\n": 0.1, ".\n": 0.1, ".\n\n": 0.2}, {"b.": 0.6, "  c": 0.4}
    ),
    "lists": language(
        {"Do:\n": 1.0}, {"- ": 0.4, "1. ": 0.3, "* ": 0.2, "  - ": 0.1}, {"**go**": 0.4, "stop": 0.6}, {"\n": 1.0}
    ),
    "markup": language(
        {"See ": 1.0},
        {"`a_b`": 0.25, "[x](y)": 0.2, "<br/>": 0.15, "\\[x^2\\]": 0.2, "$x_1$": 0.1, "## A": 0.1},
        {".": 0.6, "\n": 0.4},
    ),
    "Chinese and Japanese": language(
        {"答: ": 1.0},
        {"中国": 0.3, "中心": 0.2, "日本語": 0.3, "ありがとう": 0.2},
        {"。": 0.6, "です。": 0.2, "了。": 0.2},
    ),
    "emoji": language(
        {"Hi ": 1.0}, {"😀": 0.3, "😁": 0.2, "👍": 0.2, "👍🏽": 0.2, "👩‍💻": 0.1}, {"!": 0.5, "": 0.3, " 😀": 0.2}
    ),
}
SUMS: Language = language(
    {"1": 0.3, "13": 0.4, "130": 0.1, "2": 0.2},
    {"+": 1.0},
    {"25": 0.6, "2": 0.2, "257": 0.2},
    {"=": 1.0},
    {"3": 0.1, "38": 0.6, "48": 0.1, "380": 0.2},
    {".": 1.0},
)
