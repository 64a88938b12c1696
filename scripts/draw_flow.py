"""Draw what docs/concepts.md shows: a step as boxes, and how the byte ends of two tokenizations become units.

python scripts/draw_flow.py --folder docs
"""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import matplotlib

from simct_pl import CommonBoundaryAligner, TokenizerPair
from simct_pl.recipes import PACKAGE
from simct_pl.types import BYTE_END, BYTE_START

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

STUDENT, TEACHER, UNIT = "#3182bd", "#e6550d", "#31a354"
BOXES = (
    ("prompts", "messages", "0.4"),
    ("rollout", "the student's ids,\nas it sampled them", STUDENT),
    ("two tokenizations", "the same bytes,\nread by the teacher", TEACHER),
    ("aligned units", "between common\nbyte boundaries", UNIT),
    ("candidate scores", "both models, at\neach unit's start", UNIT),
    ("divergence", "student from\nteacher, summed", "0.4"),
    ("optimizer", "one step, then\nweight refresh", STUDENT),
)


def main(folder: Path = Path("docs"), text: str = "25+7= 32, é") -> None:
    """Draw both.

    Args:
        folder: where flow.png and boundaries.png go.
        text: the response whose boundaries are drawn, in the embedded pair's tokens.
    """
    draw_flow(folder / "flow.png")
    draw_boundaries(text, folder / "boundaries.png")


def draw_flow(output: Path) -> None:
    """The step, left to right, and the arrow back."""
    figure, axis = plt.subplots(figsize=(12, 2.1), layout="constrained")
    for place, (title, words, color) in enumerate(BOXES):
        axis.add_patch(plt.Rectangle((place * 1.7, 0), 1.4, 1, facecolor="white", edgecolor=color, linewidth=2))
        axis.text(place * 1.7 + 0.7, 0.78, title, ha="center", va="center", fontsize=10, weight="bold")
        axis.text(place * 1.7 + 0.7, 0.34, words, ha="center", va="center", fontsize=8.5)
        if place:
            axis.annotate("", (place * 1.7 - 0.03, 0.5), (place * 1.7 - 0.27, 0.5), arrowprops={"arrowstyle": "-|>"})
    last = (len(BOXES) - 1) * 1.7 + 0.7
    back = {"arrowstyle": "-|>", "color": STUDENT, "connectionstyle": "arc3,rad=-0.06"}
    axis.annotate("", (2.4, -0.06), (last, -0.06), arrowprops=back)
    axis.text((2.4 + last) / 2, -0.72, "the next step's rollouts come from the new weights", ha="center", color=STUDENT)
    axis.set_xlim(-0.1, last + 0.8)
    axis.set_ylim(-0.85, 1.1)
    axis.axis("off")
    figure.savefig(output, dpi=130)


def draw_boundaries(text: str, output: Path) -> None:
    """Bytes below, each side's tokens above, cuts where both end one."""
    assets = PACKAGE / "assets/quickstart"
    pair = TokenizerPair.from_pretrained(str(assets / "student"), str(assets / "teacher"))
    tokens = pair.tokenize(pair.student.encode(text), stopped=False)
    units_U6 = CommonBoundaryAligner().align(tokens).units_U6
    data = text.encode()
    figure, axis = plt.subplots(figsize=(max(8.0, 0.75 * len(data)), 3.0), layout="constrained")
    _draw_row(axis, data, tokens.student.ends_N.tolist(), 2.0, STUDENT)
    _draw_row(axis, data, tokens.teacher.ends_N.tolist(), 1.0, TEACHER)
    _draw_row(axis, data, units_U6[:, BYTE_END].tolist(), 0.0, UNIT)
    for start in [*units_U6[:, BYTE_START].tolist(), len(data)]:
        axis.plot([start, start], [-0.1, 2.75], color=UNIT, linewidth=1, linestyle=":", zorder=0)
    for place, byte in enumerate(data):
        axis.text(place + 0.5, -0.4, f"{byte:02X}", ha="center", fontsize=8, family="monospace", color="0.4")
    axis.set_yticks([2.35, 1.35, 0.35, -0.35], ["student's tokens", "teacher's tokens", "units", "bytes"])
    axis.tick_params(left=False)
    axis.set_xticks([])
    axis.set_xlim(-0.1, len(data) + 0.1)
    axis.set_ylim(-0.6, 2.9)
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.savefig(output, dpi=130)


def _draw_row(axis: Axes, data: bytes, ends: list[int], height: float, color: str) -> None:
    """One box from each end to the next; a part of a character is shown as its bytes."""
    for start, end in zip([0, *ends], ends, strict=False):
        box = plt.Rectangle((start + 0.06, height), end - start - 0.12, 0.7, facecolor="white", edgecolor=color)
        axis.add_patch(box)
        label = data[start:end].decode(errors="backslashreplace").replace(" ", "␣")
        axis.text((start + end) / 2, height + 0.35, label, ha="center", va="center", fontsize=10, family="monospace")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
