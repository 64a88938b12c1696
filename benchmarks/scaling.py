"""A step that does not fit on this machine, on paper: Qwen2.5-7B teaches Gemma-2-2B 4,096 tokens at a time on 8 GPUs.

All figures about GPUs are predictions of simct_pl/planning/cost_model.py from the models' sizes, a data sheet, and
assumed efficiencies; no GPU was used. The last table compares the same model with what can be counted and measured
here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jsonargparse
import torch
from rich.progress import track

from benchmarks import cost_checks, cost_loss_checks
from benchmarks.architectures import published_configs
from benchmarks.cost_checks import Check
from benchmarks.report import publish, table
from simct_pl.planning.cost_inputs import Efficiency, HardwareShape, LossShape, StepShape
from simct_pl.planning.cost_model import CostModel
from simct_pl.planning.shapes import ModelShape

GB, TERA = 1e9, 1e12
LEFT_OUT = """
Left out: kernel launches and the host's own time; sampling's passes over logits; responses of unequal length, padding,
and GPUs that wait for the longest one; AdamW's temporaries; fragmentation and the CUDA context; attention that is not
a flash kernel (eager attention keeps heads × length² weights a layer). Links are counted as if nothing hid them, and
memory as if all items of one time were alive together: both are upper bounds.
"""
CALIBRATED = """
Bytes of traffic and the loss's bytes a logit were once read off counts like these; what is tested is that they hold at
other lengths, chunk sizes and architectures. Everything else is predicted from sizes alone, and seconds from the rates
of one product and one copy. Resident memory holds in addition what the allocator keeps and what kernels need inside.
"""


def phase_table(cost: CostModel) -> str:
    """What each phase costs one GPU."""
    phases = cost.phases()
    total = sum(phase.seconds for phase in phases if not phase.hidden)
    rows = [
        [
            phase.name,
            _number(phase.flops / TERA),
            _number(phase.bytes / GB),
            _number(phase.link_bytes / GB),
            f"{phase.seconds:.2f}",
            "hidden" if phase.hidden else f"{phase.seconds / total:.1%}",
        ]
        for phase in phases
    ]
    sums = (sum(getattr(phase, name) for phase in phases) for name in ("flops", "bytes", "link_bytes"))
    units = TERA, GB, GB
    rows.append(["**step**", *(_number(value / unit) for value, unit in zip(sums, units, strict=True)), f"{total:.2f}"])
    rows[-1].append("100%")
    return table(("a GPU, predicted", "TFLOP", "GB of memory traffic", "GB over links", "seconds", "share"), rows)


def memory_table(cost: CostModel) -> str:
    """What one GPU holds, with ours and with logits of all rows at once."""
    single = replace(cost, step=replace(cost.step, micro_batch_tokens=1))
    columns = [(cost, False), (cost, True), (single, True)]
    held = [model.memory(dense=dense) for model, dense in columns]
    rows = [
        [f"{items[0].name.split(',')[0]} ({items[0].when})", *(_number(item.bytes / GB) for item in items)]
        for items in zip(*held, strict=True)
    ]
    peaks = [model.peak_bytes(dense=dense) for model, dense in columns]
    rows.append(["**peak**", *(f"**{peak / GB:.1f}**" for peak in peaks)])
    fits = ["yes" if peak <= cost.hardware.memory else "no" for peak in peaks]
    rows.append([f"fits in {cost.hardware.memory / GB:.0f} GB", *fits])
    longest = [longest_response(model, dense=dense) for model, dense in ((single, False), (single, True))]
    rows.append(
        ["longest response whose memory fits, alone in its micro-batch", f"{longest[0]:,}", "–", f"{longest[1]:,}"]
    )
    size = cost.step.micro_batch
    headers = ("GB a GPU, predicted", f"ours, {size} responses", f"dense loss, {size}", "dense loss, 1")
    return table(headers, rows)


def longest_response(cost: CostModel, *, dense: bool, most: int = 2**20) -> int:
    """Student tokens of a response with which the peak still fits, found by bisection; 0 if nothing does."""
    teacher_share = cost.step.teacher_response_tokens / cost.step.response_tokens
    fits, too_long = 0, most + 1
    while too_long - fits > 1:
        tokens = (fits + too_long) // 2
        step = replace(cost.step, response_tokens=tokens, teacher_response_tokens=round(teacher_share * tokens))
        if replace(cost, step=step).peak_bytes(dense=dense) <= cost.hardware.memory:
            fits = tokens
        else:
            too_long = tokens
    return fits


def layout_table(cost: CostModel) -> str:
    """The same step laid out differently."""
    layouts = {
        "as above": {},
        "student replicated (DDP)": {"student": "replicated"},
        "teacher sharded too": {"student": "fsdp", "teacher": "sharded"},
        "without checkpointing": {"checkpointing": False},
        "4 responses a prompt": {"num_samples": 4 * cost.step.num_samples},
    }
    rows = []
    for name, changes in layouts.items():
        changed = replace(cost, step=replace(cost.step, **changes))  # type: ignore[arg-type]
        seconds = {phase.name: phase.seconds for phase in changed.phases() if not phase.hidden}
        rollout = sum(value for phase, value in seconds.items() if phase.startswith("rollout"))
        total = sum(seconds.values())
        rows.append([name, f"{total:.1f}", f"{rollout / total:.0%}", f"{changed.peak_bytes() / GB:.1f}"])
    return table(("predicted", "seconds a step", "of it rollout", "peak GB a GPU"), rows)


def checks() -> list[Check]:
    """Everything that can be checked here."""
    jobs: list[Callable[[], list[Check]]] = [
        cost_checks.parameter_checks,
        cost_checks.flop_checks,
        cost_checks.activation_checks,
        cost_checks.body_traffic_checks,
        lambda: [cost_checks.state_check()],
        lambda: [cost_loss_checks.traffic_check()],
        *(partial(_peaks, *shape) for shape in itertools.product((512, 2048), (512, 1024))),
        *(partial(_peaks, num_tokens, dense=True) for num_tokens in (512, 2048)),
        cost_loss_checks.seconds_checks,
    ]
    return [check for job in track(jobs, "checks") for check in job()]


def _peaks(num_tokens: int, chunk_tokens: int = 512, *, dense: bool = False) -> list[Check]:
    measures = cost_loss_checks.alive_check, cost_loss_checks.resident_check
    return [measure(num_tokens, chunk_tokens, dense=dense) for measure in measures]


def check_table(found: list[Check]) -> str:
    """One line for each kind of number, its cases side by side."""
    kinds: dict[str, list[Check]] = {}
    for check in found:
        kinds.setdefault(check.what, []).append(check)
    rows = [
        [
            what,
            " · ".join(check.case for check in members),
            " · ".join(_quantity(check.predicted, check.unit) for check in members),
            " · ".join(_quantity(check.measured, check.unit) for check in members),
            " · ".join(f"{check.ratio:.2f}" for check in members),
        ]
        for what, members in kinds.items()
    ]
    return table(("checked here", "of", "predicted", "counted or measured", "predicted / measured"), rows)


def _number(value: float) -> str:
    return "–" if value == 0 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _quantity(value: float, unit: str) -> str:
    if unit == "":
        return f"{value:,.0f}"
    scale, prefix = {"B": (2**20, "Mi"), "FLOP": (1e6, "M"), "s": (1.0, "")}[unit]
    return f"{value / scale:.3g} {prefix}{unit}"


def _assumptions(cost: CostModel, names: tuple[str, str]) -> str:
    step, hardware, used = cost.step, cost.hardware, cost.efficiency
    return (
        f"**Predictions, no GPU was used.** {names[1]} ({cost.teacher.parameters / 1e9:.2f} B parameters) teaches "
        f"{names[0]} ({cost.student.parameters / 1e9:.2f} B): {step.num_prompts} prompts × {step.num_samples} of "
        f"{step.prompt_tokens} tokens, responses of {step.response_tokens:,} student and "
        f"{step.teacher_response_tokens:,} teacher tokens, {step.num_gpus} GPUs, student {step.student}, teacher "
        f"{step.teacher}, checkpointing {'on' if step.checkpointing else 'off'}, fp32 weights, bf16 products, an "
        f"engine on each GPU. A GPU: {hardware.flops / TERA:.0f} TFLOP/s, {hardware.memory_bandwidth / TERA:.2f} TB/s, "
        f"{hardware.link_bandwidth / GB:.0f} GB/s to its peers. Assumed shares of them: products {used.products:.0%}, "
        f"decoding {used.decode:.0%}, other passes over memory {used.elementwise:.0%}, links {used.link:.0%}."
    )


def main(
    student: str = "Gemma-2-2B-it",
    teacher: str = "Qwen2.5-7B-Instruct",
    step: StepShape = StepShape(),  # noqa: B008 - frozen
    loss: LossShape = LossShape(),  # noqa: B008
    hardware: HardwareShape = HardwareShape(),  # noqa: B008
    efficiency: Efficiency = Efficiency(),  # noqa: B008
    check: bool = True,
    threads: int = 1,
    write: bool = False,
) -> None:
    """Print the tables; `--write` puts them into docs/performance.md.

    Args:
        student, teacher: names in benchmarks.architectures.published_configs.
        step: what is trained on, and how it is laid out.
        loss: how the loss treats logits.
        hardware: peaks of one GPU.
        efficiency: shares of the peaks that are reached.
        check: compare the model with what can be measured here (some minutes).
        threads: of torch, for the checks.
        write: publish the tables.
    """
    torch.set_num_threads(threads)
    shapes = {name: ModelShape.from_config(config) for name, config in published_configs().items()}
    cost = CostModel(shapes[student], shapes[teacher], step, loss, hardware, efficiency)
    body = [_assumptions(cost, (student, teacher)), phase_table(cost), memory_table(cost), layout_table(cost)]
    body.append(LEFT_OUT.strip())
    if check:
        body += [check_table(checks()), CALIBRATED.strip()]
    publish("scaling", "python -m benchmarks.scaling", "\n\n".join(body), write=write)


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
