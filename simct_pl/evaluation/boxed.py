"""A maths answer as text: a response in; what its last `\\boxed{}` holds, and how math-verify reads it best, out.

Every step is one pass over the text: a collapsed model boxes a thousand answers, or none and a thousand braces.
"""

from __future__ import annotations

import re

BOX = re.compile(r"\\boxed\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # `\{` is no brace

# White space of LaTeX and of Unicode that may part thousands; the last alternative is a plain blank.
THIN_BLANKS = "\u00a0\u2002-\u200a\u202f\u205f"
BLANK = rf"(?:\\[,;: ]|\\(?:thin|med|thick)space(?![a-zA-Z])\s*(?:\{{\}})?|[~{THIN_BLANKS}]|[ ])"
GROUPS = re.compile(rf"(?<![\d.,^_])\d+(?:{BLANK}\d+)+(?![\d])")
DECIMALS = re.compile(rf"(?<=\d\.)\d+(?:{BLANK}\d+)+(?![\d])")
NUMBER_OF_THINGS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{\s*(\\?\$?-?[\d.,]*\d)\s+([a-zA-Z][a-zA-Z ]*)\}")
DOLLAR = re.compile(r"\\(?:text|mathrm|mbox)\{\s*\\?\$\s*\}")
# Words behind a number that math-verify would drop as a unit, and words with which it is no number of things.
POWERS = {"hundred": "10^{2}", "thousand": "10^{3}", "million": "10^{6}", "billion": "10^{9}", "dozen": "12"}
WORD = f"({'|'.join(POWERS)})s?"
IN_WORDS = re.compile(rf"(?<=\d){BLANK}?(?:{WORD}\b|\\(?:text|mathrm|mbox)\{{\s*{WORD}\b[a-zA-Z ]*\}})", re.IGNORECASE)
NO_THINGS = re.compile(r"\b(?:percent|hal(?:f|ves)|thirds?|quarters?|over|or|and|to|times|point)\b", re.IGNORECASE)


def last_boxed(response: str) -> str | None:
    """What the last whole `\\boxed{…}` holds, braces balanced; None without one."""
    boxes = {match.end() - 1 for match in BOX.finditer(response)}
    last: tuple[int, int] | None = None
    opened: list[int] = []
    for match in BRACE.finditer(response):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start in boxes and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else response[last[0] + 1 : last[1]].strip()


def plain_answer(answer: str) -> str:
    """An answer in a spelling that math-verify reads: `1\\,000` as 1000. What does not mean the same stays as it is."""
    text = answer.replace("\\!", "")  # takes space away, and parts nothing
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    text = re.sub(rf"(?<=\d)\{{({BLANK})\}}(?=\d)", r"\1", text)
    text = GROUPS.sub(_without_blanks, text)
    text = DECIMALS.sub(_decimals_without_blanks, text)
    text = DOLLAR.sub(r"\\$", text)
    text = re.sub(rf"{BLANK}(?=\\?%)", "", text)
    text = re.sub(rf"[~{THIN_BLANKS}]", " ", text)
    text = re.sub(r"(?<=\d)\.\s*\Z", "", text)
    text = IN_WORDS.sub(lambda match: rf"\cdot {POWERS[(match[1] or match[2]).lower()]}", text)
    things = NUMBER_OF_THINGS.fullmatch(text.strip())
    return things[1] if things and not NO_THINGS.search(things[2]) else text


def _without_blanks(match: re.Match[str]) -> str:
    """Digits in groups of three, but for the first: one number. Anything else: several."""
    first, *others = re.findall(r"\d+", match[0])
    is_one = len(first) <= 3 and first[0] != "0" and all(len(group) == 3 for group in others)
    return "".join([first, *others]) if is_one else match[0]


def _decimals_without_blanks(match: re.Match[str]) -> str:
    """The same behind the point, where the last group may be shorter, and a plain blank parts two numbers."""
    *others, last = re.findall(r"\d+", match[0])
    is_one = re.search(r"\d \d", match[0]) is None and len(last) <= 3 and all(len(group) == 3 for group in others)
    return "".join([*others, last]) if is_one else match[0]
