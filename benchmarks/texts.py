"""Texts of any length that every installation of Python has: English, code, CJK with emoji, sums, repetition.

Deterministic for one version of Python. Nothing is downloaded and no corpus is shipped.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

_CJK = (
    "今天的天气很好，我们一起去公园散步吧。",
    "这道题的答案是四十二，因为六乘以七等于四十二。",
    "請先把檔案備份好，再開始更新系統。",
    "昨日は友達と一緒に京都のお寺を見に行きました。",
    "この関数は、文字列をバイト列に変換してから長さを返します。",
    "오늘은 날씨가 좋아서 공원에서 산책을 했습니다.",
    "두 수의 합은 열둘이고, 차는 넷입니다.",
)
# fmt: off
_EMOJI = (
    "😀", "😂", "🥲", "🤖", "🚀", "🎉", "🔥", "🌍", "🍜", "🐼", "🐙", "🧮",
    "📚", "✅", "⚠️", "❤️", "👍🏽", "👩‍🔬", "👨‍👩‍👧", "🏳️‍🌈", "🇯🇵", "🇰🇷", "🇩🇪",
)
# fmt: on
_SUMS = (
    "We need x with x + {b} = {sum}. Subtract {b} from both sides: x = {sum} - {b} = {a}.\n",
    "{a} + {b} = {sum}, {sum} + {b} = {next}, {next} - {a} = {twice}\n",
    "{a} * {b} = {product}, {product} + {sum} = {last}\n",
)


def english() -> Iterator[str]:
    """Python's own language reference, as `help()` shows it; 465,000 characters before it begins again."""
    while True:
        yield from topics.values()


def code() -> Iterator[str]:
    """The standard library's modules by name."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    while True:
        yield from (path.read_text(encoding="utf-8", errors="ignore") for path in paths)


def cjk_emoji() -> Iterator[str]:
    """Chinese, Japanese and Korean sentences with emoji, of one to five code points each, between them."""
    rng = random.Random(0)
    while True:
        yield rng.choice(_CJK) + "".join(rng.choices(_EMOJI, k=rng.randrange(4)))


def sums() -> Iterator[str]:
    """Short worked answers: sentences with numbers."""
    rng = random.Random(0)
    while True:
        a, b = rng.randrange(10, 1000), rng.randrange(100, 10_000)
        numbers = {"a": a, "b": b, "sum": a + b, "next": a + 2 * b, "twice": 2 * b, "product": a * b}
        yield rng.choice(_SUMS).format(**numbers, last=a * b + a + b)


def repetitive() -> Iterator[str]:
    """One syllable for ever: anything that searches for the next match has thousands to choose from."""
    while True:
        yield "ha"


def repetitive_rewritten() -> Iterator[str]:
    """The same with a decomposed letter here and there, which NFC rewrites."""
    while True:
        yield "ha" * 50 + "e\u0301"


def take(make: Callable[[], Iterator[str]], num_chars: int) -> str:
    """The first characters of one of the texts above."""
    pieces, length = [], 0
    for piece in make():
        pieces.append(piece)
        length += len(piece)
        if length >= num_chars:
            break
    return "".join(pieces)[:num_chars]
