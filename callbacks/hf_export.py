"""Writes the trained student as a model folder at the end of a fit, and every so many steps when asked."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.files.outputs import check_output
from simct_pl.models.export import export
from simct_pl.tracking.outputs import OutputWriter
from simct_pl.tracking.run_info import RunInfoReader
from simct_pl.training.model_card import model_card
from simct_pl.types import PromptBatch


class HFExport(OutputWriter, RunInfoReader):
    """Exports to `output` (weights, tokenizer, chat template, generation config, model card), atomically.

    Args:
        output: folder; `<output>-step<N>` for the intermediate ones. every_n_steps: None exports at the end only.
        adapter: of a LoRA student, write the adapters alone, as PEFT does; False merges them into the model.
    """

    only_reports = True

    def __init__(self, output: str, every_n_steps: int | None = None, adapter: bool = False) -> None:
        self.output, self.every_n_steps, self.adapter = Path(output), every_n_steps, adapter
        self._exported_at = 0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse an unfit output hours before it is needed."""
        module = distilled(self, pl_module)
        module.check_adapter(self.adapter, "HFExport")
        read = (module.student_path, *(lesson.path for lesson in module.lessons.values()), module.starts_from)
        check_output(self.output, read)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._exported_at:  # else it was skipped
            self._export(trainer, pl_module, self.output.with_name(f"{self.output.name}-step{step}"))
            self._exported_at = step

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._export(trainer, pl_module, self.output)

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule, output: Path) -> None:
        module = distilled(self, pl_module)
        tokenizer, writes = module.pair.student.hf, trainer.is_global_zero
        card = model_card(output.name, module, trainer.global_step, self.run_info)
        export(module.student, tokenizer, output, module.tokenizer_path, self.adapter, writes, card)
