"""What a module with a LoRA student keeps in its checkpoints: what is trained, and which base model it belongs to.

In: Lightning's checkpoint, with everything. Out: the same without the frozen weights, which are in the base model's
folder; a run that goes on reads them there, and nowhere else.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import CheckpointError, RecipeError
from simct_pl.models.adapter_folder import tokenizer_folder
from simct_pl.models.load_arguments import is_quantised
from simct_pl.models.loading import DtypeName, load_config, weights_id
from simct_pl.models.lora import Lora, TrainedShare
from simct_pl.models.ranks import failing_together, rank
from simct_pl.models.sharding import Sharding

KEY = "lora"  # of our part in a checkpoint


class AdaptedModule(L.LightningModule):
    """A module that trains all of a model, or, with `lora`, adapters in front of its frozen weights."""

    lora: Lora | None = None
    sharding: Sharding | None = None

    def use_lora(self, role: str, path: str, values: dict[str, Any] | None) -> str:
        """Say what is trained of a model, before anything loads; the folder or hub name that its weights are read from.

        path: a model folder, a hub name, or an adapter folder. values: see Lora.of.
        """
        self.lora = Lora.of(role, path, values)
        self.strict_loading = self.lora is None  # frozen weights are not in the checkpoints
        return os.path.expanduser(path) if self.lora is None else self.lora.base

    def check_adapter(self, adapter: bool, who: str, from_scratch: bool = False) -> bool:
        """Whether there are adapters where some are to be written, and weights that they are in front of.

        Raises:
            RecipeError: if not.
        """
        if adapter and self.lora is None:
            raise RecipeError(
                f"{who} has adapter: true, and the model has no adapter: all of it is trained. Set "
                "model.init_args.lora, or leave adapter out."
            )
        if from_scratch and self.lora is not None:
            raise RecipeError("from_scratch trains all of a model, and lora trains none of its weights. Leave one out.")
        return adapter

    def tokenizer_of(self, path: str) -> str:
        """Where the tokenizer is of a model whose weights are read from a path."""
        return path if self.lora is None else tokenizer_folder(self.lora.folder, path)

    def recipes_name_of(self, path: str) -> str:
        """The adapter folder that a model was given as; else its path."""
        return path if self.lora is None or self.lora.folder is None else str(self.lora.folder)

    def check_lora(self, dtype: DtypeName, trust_remote_code: bool = False) -> None:
        """Try the adapters on the base model's shapes; see Lora.check."""
        if self.lora is None:
            return
        config = load_config("student", self.lora.base, trust_remote_code)
        if is_quantised({}, config):
            raise RecipeError(
                f"{self.lora.base!r} is quantised, and adapters are merged into the weights that engines get. Give the "
                "model in its own precision."
            )
        self.lora.check(config, dtype, trust_remote_code)

    def prepare_student(self, model: PreTrainedModel, gradient_checkpointing: bool) -> PreTrainedModel:
        """In training mode, its activations recomputed if that is wanted; says how much of it is trained."""
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.lora is not None:
            rank_zero_info(f"LoRA: {TrainedShare.of(model).words}.")
        return model.train()

    @property
    def start(self) -> Lora | None:
        """The adapter that the student begins with; a new one is nothing yet."""
        return self.lora if self.lora is not None and self.lora.folder is not None else None

    @property
    def start_is_inside(self) -> bool:
        """Whether the student with its adapters switched off is what it began as. Not where ranks share it: FSDP2 would
        gather its blocks ahead for a backward that does not come.
        """
        return self.lora is not None and self.lora.begins_as_base and self.sharding is None

    @cached_property
    def _base_id(self) -> str:
        """Of the base model's weights; hashed once, by the first rank alone."""
        return weights_id(self.lora.base) if self.lora is not None and rank() == 0 else ""

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.lora is None:
            return
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        # On the ranks that do not write, there is nothing in it.
        checkpoint["state_dict"] = {n: tensor for n, tensor in checkpoint["state_dict"].items() if n not in frozen}
        checkpoint[KEY] = {"base": self._base_id, "trained": self._trained()}

    def _trained(self) -> list[str]:
        return sorted(name for name, parameter in self.named_parameters() if parameter.requires_grad)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another base model, or of other adapters.

        Raises:
            CheckpointError: on every rank.
        """
        own = checkpoint.get(KEY)
        if self.lora is None:
            if own is not None:
                raise CheckpointError("The checkpoint is of a LoRA student. Set model.init_args.lora as it was then.")
            return
        if own is None or own["trained"] != self._trained():
            found = "a student without LoRA" if own is None else "other adapters"
            raise CheckpointError(f"The checkpoint is of {found}. Set model.init_args.lora as it was then.")
        with failing_together("read the base model that the checkpoint belongs to", CheckpointError):
            if rank() == 0 and own["base"] != self._base_id:
                raise CheckpointError(
                    f"The weights in {self.lora.base!r} are no longer those that the checkpoint's adapters were "
                    "trained on. Put them back, or start a new run in another trainer.default_root_dir."
                )
