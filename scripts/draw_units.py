"""Draw a text in the tokens of two models, and the units that both spell, as docs/methods.md shows it.

python scripts/draw_units.py --output docs/units.png
"""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import matplotlib

from simct_pl import CommonBoundaryAligner, TokenizerPair
from simct_pl.config.recipes import PACKAGE
from simct_pl.types import BYTE_END, BYTE_START, STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLORS = {"1:1": "#d9d9d9", "1:n": "#fdae6b", "n:1": "#9ecae1", "n:m": "#a1d99b"}


def main(
    text: str = "25+7= 32, total 32",
    student: str = str(PACKAGE / "assets/quickstart/student"),
    teacher: str = str(PACKAGE / "assets/quickstart/teacher"),
    output: Path = Path("units.png"),
) -> None:
    """Draw it.

    Args:
        text: the response.
        student, teacher: model folders.
        output: the PNG.
    """
    pair = TokenizerPair.from_pretrained(student, teacher)
    tokens = pair.tokenize(pair.student.encode(text), stopped=False)
    units_U6 = CommonBoundaryAligner().align(tokens).units_U6
    figure, axis = plt.subplots(figsize=(max(6.0, 0.62 * len(text)), 2.3), layout="constrained")
    for unit in units_U6:
        sides = unit[STUDENT_END] - unit[STUDENT_START], unit[TEACHER_END] - unit[TEACHER_START]
        shape = ":".join(["1" if sides[0] == 1 else "n", "1" if sides[1] == 1 else ("m" if sides[0] > 1 else "n")])
        axis.axvspan(unit[BYTE_START], unit[BYTE_END], color=COLORS[shape], alpha=0.55, linewidth=0)
        axis.axvline(unit[BYTE_END], color="0.35", linewidth=1.2)
        axis.text((unit[BYTE_START] + unit[BYTE_END]) / 2, -0.28, shape, ha="center", va="center", fontsize=8)
    for height, side in ((1, tokens.student), (0, tokens.teacher)):
        _draw_tokens(axis, text.encode(), side.ends_N.tolist(), height)
    axis.set_yticks([1, 0, -0.28], ["student", "teacher", "unit"])
    axis.set_xlim(0, len(text.encode()))
    axis.set_ylim(-0.5, 1.5)
    axis.set_xticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.savefig(output, dpi=140)


def _draw_tokens(axis: Axes, text: bytes, ends: list[int], height: float) -> None:
    """One box a token."""
    for start, end in zip([0, *ends], ends, strict=False):
        label = text[start:end].decode(errors="replace").replace(" ", "␣")
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "0.5", "linewidth": 0.8}
        axis.text((start + end) / 2, height, label, ha="center", va="center", fontsize=11, family="monospace", bbox=box)


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
