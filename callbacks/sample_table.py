"""A table of sampled responses with the loss of each unit: what did the student say, and where
was it wrong?
"""

from __future__ import annotations

from itertools import compress
from typing import Any

import lightning as L
from typing_extensions import override

from simct_pl.tracking.artifacts import log_table
from simct_pl.types import BYTE_END, BYTE_START, PromptBatch, StepRecord, UnitAlignment


class SampleTable(L.Callback):
    """Logs the table `samples` to every logger that takes one: step, prompt, response, its author, finish reason, loss,
    and the loss per unit.

    Args:
        every_n_steps: how often, from the first step on. num_samples: responses a time.
    """

    only_reports = True

    def __init__(self, every_n_steps: int = 50, num_samples: int = 4) -> None:
        self.every_n_steps, self.num_samples = every_n_steps, num_samples

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        due = (trainer.global_step - 1) % self.every_n_steps == 0  # by the step: batches count from 0 in each epoch
        if not due or batch.record is None or not trainer.is_global_zero:
            return
        rows = sample_rows(batch.record, self.num_samples)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns["step"] = [trainer.global_step] * len(rows)
        log_table(trainer.loggers, "samples.json", columns, trainer.global_step)


def sample_rows(record: StepRecord, num_samples: int) -> list[dict[str, Any]]:
    """One row a response: texts, author, finish reason, its loss sum, and `unit loss` pairs in text order."""
    rows = []
    for rollout, alignment, stats in list(zip(record.rollouts, record.alignments, record.stats, strict=True))[
        :num_samples
    ]:
        losses = stats.loss_U.tolist()
        rows.append(
            {
                "prompt": rollout.prompt.messages[-1]["content"],
                "response": alignment.text.decode(errors="replace"),
                "author": rollout.author,
                "finish_reason": rollout.finish_reason,
                "loss": sum(losses),
                "unit_losses": [
                    f"{text!r} {loss:.3f}" for text, loss in zip(_unit_texts(alignment), losses, strict=True)
                ],
            }
        )
    return rows


def _unit_texts(alignment: UnitAlignment) -> list[str]:
    """Of the supervised units."""
    spans = alignment.units_U6[:, [BYTE_START, BYTE_END]].tolist()
    texts = [alignment.text[start:end].decode(errors="replace") for start, end in spans]
    if alignment.has_stop:
        texts[-1] = "<stop>"
    return list(compress(texts, alignment.supervised_U))
