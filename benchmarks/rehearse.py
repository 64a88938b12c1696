"""A whole training step of published models, at full size, on a GPU that is not there: what it would ask of one.

    python -m benchmarks.rehearse --write true

One micro-batch and the optimizer's step, later in a run: moments and gradients are there. Units, labels and paths are
those of benchmarks/synthetic.py, at the length and over the vocabularies of the pair. Nothing here says how long
anything takes: no kernel runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import jsonargparse
import torch
from rich.progress import Progress

from benchmarks.architectures import published_configs
from benchmarks.report import publish, table
from benchmarks.synthetic import make_units
from simct_pl.losses.base import Objective
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.simct import SimCTLoss
from simct_pl.losses.token_conditional import TokenConditionalLoss
from simct_pl.models.sharding import Sharding
from simct_pl.rehearsal import fake_cuda
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource
from simct_pl.rehearsal.pair import Distillation, MicroBatch, rehearse_distillation
from simct_pl.rehearsal.training import Training
from simct_pl.rehearsal.waits import forbidden, products
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.step_timer import PHASES
from simct_pl.types import Prompt, Rollout

GB = 1e9
PROMPT_TOKENS = 256
NUM_FORWARDS = 2  # one of each model
SHOWN = ("student_forward", "teacher", "loss", "student_backward", "optimizer")


@dataclass(frozen=True)
class Case:
    """A step: student ◄ teacher, names in published_configs; responses of so many tokens. ranks: that share the student
    by FSDP2, in bf16; 1: it is whole, and its products run in bf16 by autocast. layers: of both models, all if 0.
    """

    student: str
    teacher: str
    objective: str = "TokenConditionalLoss"
    ranks: int = 1
    responses: int = 3
    tokens: int = 4096
    layers: int = 0

    @property
    def layout(self) -> str:
        return "1 GPU, autocast" if self.ranks == 1 else f"1 of {self.ranks}, FSDP2, bf16"


PAPER = ("Gemma-2-2B-it", "Qwen2.5-7B-Instruct")
CASES = (
    Case(*PAPER),
    Case(*PAPER, ranks=8),
    Case(*PAPER, objective="SimCTLoss", ranks=8),
    Case("Phi-4-mini-instruct", "Qwen2.5-7B-Instruct", ranks=8),
    Case("Gemma-2-2B-it", "Phi-4-mini-instruct", ranks=8),
    Case("Qwen3-1.7B", "Qwen2.5-7B-Instruct", ranks=8),
    Case("Gemma-3-1B-it", "Qwen3-8B", ranks=8),
)


@dataclass(frozen=True)
class Figures:
    """What a rehearsal counted, in numbers that JSON takes. kernels, bytes: by phase. forbidden: see waits.py."""

    kernels: dict[str, int]
    bytes: dict[str, int]
    most: int
    waits: dict[str, int]
    uploads: dict[str, int]
    forbidden: list[str]
    products: dict[str, list[str]]
    lines: dict[str, int]
    at_most: dict[str, int]

    @classmethod
    def of(cls, ledger: Ledger) -> Figures:
        lines = {line: count for (phase, line), count in ledger.kernels.most_common() if phase == "loss"}
        return cls(
            kernels={phase: ledger.kernels_in(phase) for phase in PHASES},
            bytes=dict(ledger.most_in),
            most=ledger.most,
            waits={f"{wait.place.line}: {wait.kind}": count for wait, count in ledger.waits.items()},
            uploads={place.line: count for place, count in ledger.uploads.items()},
            forbidden=forbidden(ledger, NUM_FORWARDS),
            products={phase: sorted(map(str, products(ledger, phase))) for phase in SHOWN},
            lines=lines,
            at_most={line: size for line, size in ledger.at_most.most_common(20) if size},
        )


def rehearse_case(**case: Any) -> dict[str, Any]:
    """Figures of one case; run it where "cuda" is fake."""
    return asdict(Figures.of(ledger_of(Case(**case), "cuda")))


def ledger_of(case: Case, device: str, objective: Objective | None = None) -> Ledger:
    """The rehearsal itself."""
    student, teacher = (_source(name, case.layers) for name in (case.student, case.teacher))
    vocabs = student.config.vocab_size, teacher.config.vocab_size
    rows, tables, made = unit_parts(case.responses * case.tokens, *vocabs, case.objective)
    sharded = {"sharding": Sharding(param_dtype="bfloat16"), "num_ranks": case.ranks}
    training = Training(student, **sharded if case.ranks > 1 else {"autocast": True})  # type: ignore[arg-type]
    distillation = Distillation(teacher, objective or made, micro_batch(rows, tables, case.responses))
    return rehearse_distillation(training, distillation, device)


def _source(name: str, layers: int) -> ModelSource:
    config = published_configs()[name]
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return ModelSource(config)


def unit_parts(
    num_tokens: int, student_vocab: int, teacher_vocab: int, objective: str = "TokenConditionalLoss"
) -> tuple[UnitRows, PairTables, Objective]:
    """Synthetic units of about so many student tokens, and an objective that knows their labels."""
    tables, rows, labels, paths = make_units(num_tokens, student_vocab, teacher_vocab)
    if objective == "SimCTLoss":
        return rows, tables, SimCTLoss("sum_logprob", "marginal")
    found = TokenConditionalLoss()
    found.use_labels(*labels)
    return replace(rows, paths=paths), tables, found


def micro_batch(rows: UnitRows, tables: PairTables, responses: int) -> MicroBatch:
    """Those units as so many responses of one length."""
    student, teacher = (_shares(len(ids), responses) for ids in (rows.student_ids_N, rows.teacher_ids_M))
    prompt = Prompt(0, ({"role": "user", "content": ""},))
    rollouts = [Rollout(prompt, 0, [1] * PROMPT_TOKENS, [2] * n, [0.0] * n, "length", 0, 0) for n in student]
    alignments: list[Any] = [SimpleNamespace(teacher_ids_T=torch.full((n,), 2)) for n in teacher]
    return MicroBatch(rollouts, AlignedBatch(alignments, [[1] * PROMPT_TOKENS] * responses, rows, 0.0), tables)


def _shares(number: int, parts: int) -> list[int]:
    each = number // parts
    return [each] * (parts - 1) + [number - each * (parts - 1)]


def main(write: bool = False, case: Case | None = None) -> None:
    """Rehearse, some minutes; `--write true` puts the tables into docs/scaling.md.

    Args:
        write: publish the tables.
        case: this one alone, with the lines of its loss.
    """
    if not fake_cuda.is_possible():
        raise SystemExit("It takes g++ and a torch without CUDA of its own, as `make install` brings it.")
    found: dict[Case, Figures] = {}
    with Progress() as progress:
        for one in progress.track((case,) if case else CASES, description="rehearsing"):
            found[one] = Figures(**fake_cuda.call("benchmarks.rehearse:rehearse_case", **asdict(one)))
    body = "\n\n".join([_kernels(found), _memory(found), _hosts(found), *([_lines(found[case])] if case else [])])
    publish("rehearsal", "python -m benchmarks.rehearse", body, write=write, page="scaling.md")


def _head(case: Case) -> list[str]:
    return [f"{case.student} ◄ {case.teacher}", case.objective, case.layout]


def _kernels(found: dict[Case, Figures]) -> str:
    rows = [[*_head(case), *(f"{of.kernels[phase]:,}" for phase in SHOWN)] for case, of in found.items()]
    return table(("operators that start kernels", "objective", "layout", *_phase_names()), rows)


def _memory(found: dict[Case, Figures]) -> str:
    rows = [
        [*_head(case), *(f"{of.bytes[phase] / GB:.1f}" for phase in SHOWN), f"**{of.most / GB:.1f}**"]
        for case, of in found.items()
    ]
    return table(("GB alive at most", "objective", "layout", *_phase_names(), "peak"), rows)


def _hosts(found: dict[Case, Figures]) -> str:
    rows = [
        [
            *_head(case),
            str(sum(of.waits.values())),
            "; ".join(of.forbidden) or "none",
            str(sum(of.uploads.values())),
            " / ".join(_dtypes(of, phase) for phase in ("student_forward", "teacher", "loss")),
        ]
        for case, of in found.items()
    ]
    headers = ("the host", "objective", "layout", "waits", "not allowed", "uploads without a wait", "products of")
    return table(headers, rows)


def _dtypes(of: Figures, phase: str) -> str:
    return "+".join(name.removeprefix("torch.") for name in of.products[phase])


def _phase_names() -> list[str]:
    return [phase.replace("_", " ") for phase in SHOWN]


def _lines(of: Figures) -> str:
    waits = [[line, str(count)] for line, count in of.waits.items()]
    lines = [[line, str(count)] for line, count in [*of.lines.items()][:40]]
    held = [[line, f"{size / GB:.2f}"] for line, size in of.at_most.items()]
    parts = (("waits", "times"), waits), (("kernels of the loss", "times"), lines), (("alive at the peak", "GB"), held)
    return "\n\n".join(table(headers, rows) for headers, rows in parts if rows)


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
