"""LoRA students: small trained matrices beside frozen weights (arXiv 2106.09685), put in place by PEFT.

In: a model folder or an adapter folder, and fields of peft.LoraConfig. Out: the model itself, its chosen linear layers
replaced by PEFT's, with only the adapters trainable. It stays the class that it was; no PeftModel is wrapped around it,
so that its body, its head and `generate` are found where they were. Importing PEFT takes seconds: only what a recipe
with LoRA calls does it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from simct_pl.errors import MissingPackageError, RecipeError, first_line, require_choice
from simct_pl.models.adapter_folder import is_adapter, load_adapter, read_adapter_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import LoraConfig

OURS = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    "inference_mode",
)
INITIALISATIONS = (True, "gaussian", "orthogonal")
# Fields that stay at their defaults, and why.
_OTHER_FORWARD = "needs a forward, or tensors, that a merged weight cannot stand for"
_NEEDS_DATA = "is worked out from data before training, which is not done here"
_OTHER_BASE = "trains parts of the base model that would not reach the engines"
UNSUPPORTED = {
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "use_bdlora", "use_qalora"), _OTHER_FORWARD),
    **dict.fromkeys(("monteclora_config", "velora_config", "kasa_config", "megatron_config"), _OTHER_FORWARD),
    **dict.fromkeys(("runtime_config", "layer_replication"), _OTHER_FORWARD),
    **dict.fromkeys(("eva_config", "corda_config", "loftq_config", "lora_ga_config"), _NEEDS_DATA),
    **dict.fromkeys(("trainable_token_indices", "target_parameters"), _OTHER_BASE),
}


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All that an optimizer steps: of a model with adapters these, of another everything."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class TrainedShare:
    """Parameters of a model with adapters: all of them, and those that are trained. What is tied counts once."""

    all: int
    trained: int

    @classmethod
    def of(cls, model: nn.Module) -> TrainedShare:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        return cls(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))

    @property
    def words(self) -> str:
        return f"{self.trained:,} of {self.all:,} parameters are trained ({self.trained / self.all:.2%})"


@dataclass(frozen=True)
class Lora:
    """Which adapters a model gets.

    base: model folder or hub name. values: of LoraConfig. folder: of an adapter to go on from; None begins a new one.
    dtype, trust_remote_code: of the base.
    """

    base: str
    values: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def of(cls, role: str, path: str, values: Mapping[str, Any] | None) -> Lora | None:
        """What a recipe says of a model; None if it is an ordinary one, all of whose weights are trained.

        path: a model folder, a hub name, or an adapter folder, which names its base model. values: fields of LoraConfig
            for a new adapter; None where there is none, or one is gone on with.

        Raises:
            RecipeError: for a field that LoraConfig does not have, or that is not supported, or for fields beside an
                adapter folder that say otherwise. MissingPackageError: without PEFT. ModelFolderError: if an adapter's
                configuration cannot be read.
        """
        path = os.path.expanduser(path)
        if is_adapter(path):
            base, kept = read_adapter_config(role, path)
            differing = sorted(name for name, value in (values or {}).items() if value != kept.get(name))
            if values and differing:
                said = ", ".join(f"{name}={values[name]!r}" for name in differing)
                there = ", ".join(f"{name}={kept.get(name)!r}" for name in differing)
                raise RecipeError(
                    f"lora says {said}, and the {role} {path!r} is an adapter with {there}. Leave lora out (null) to "
                    f"train that adapter on, or give its base model {base!r} to begin a new one."
                )
            found = cls(base, kept, Path(path))
        elif values is None:
            return None
        else:
            found = cls(path, dict(values))
        found.check_values()
        return found

    def check_values(self) -> None:
        """See `of`."""
        known = tuple(one.name for one in fields(_peft().LoraConfig) if one.name not in OURS)
        for name, value in self.values.items():
            if name in OURS:
                raise RecipeError(f"lora.{name} is not yours to set: it follows from the run. Leave it out.")
            require_choice("A field of lora", name, known)
            if name in UNSUPPORTED and value:
                raise RecipeError(f"lora.{name} is {value!r}; it {UNSUPPORTED[name]}. Leave it out.")
        chosen = self.values.get("init_lora_weights", True)
        if not any(chosen is one or chosen == one for one in INITIALISATIONS if type(one) is type(chosen)):
            raise RecipeError(
                f"lora.init_lora_weights is {chosen!r}; expected one of {INITIALISATIONS}: with these the student "
                "begins as its base model, whose weights stay as they are in their folder."
            )
        self.config()

    def config(self) -> LoraConfig:
        """PEFT's own.

        Raises:
            RecipeError: if PEFT refuses the values.
        """
        base = str(Path(self.base).absolute()) if Path(self.base).is_dir() else self.base  # it is written into folders
        try:
            return _peft().LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base, **self.values)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"PEFT refuses lora {dict(self.values)}: {first_line(error)}") from error

    @property
    def begins_as_base(self) -> bool:
        """Whether the starting student is the model without its adapters, so that switching them off gives it back."""
        whole = self.values.get("modules_to_save") or self.values.get("bias", "none") != "none"
        return self.folder is None and not whole

    def check(self, config: PretrainedConfig, dtype: str, trust_remote_code: bool = False) -> TrainedShare:
        """Try the adapters on the base model's shapes, without weights.

        dtype: the weights will have.

        Raises:
            RecipeError: if they do not fit it.
        """
        if dtype != "float32":
            self._refuse_low_precision(dtype)
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        model.tie_weights()
        self.attach(model, load=False)
        return TrainedShare.of(model)

    def _refuse_low_precision(self, dtype: str) -> None:
        for name in ("modules_to_save", "bias"):
            value = self.values.get(name)
            if value and value != "none":
                raise RecipeError(
                    f"lora.{name}={value!r} trains weights of the student itself, and they are in {dtype}, in which "
                    "small steps are lost. Set student_dtype: float32, or leave the field out."
                )

    def attach(self, model: PreTrainedModel, load: bool = True, empty: bool = False) -> None:
        """Put adapters into a model, in place: fp32, trainable, all else frozen. New ones begin as the run's seed says
        and leave the global random numbers where they were.

        load: read those of a folder; False leaves them as new ones begin. empty: leave new ones on the meta device.

        Raises:
            RecipeError: if no layer is named, or one that cannot have an adapter. ModelFolderError: if the adapter in
            the folder is of another model.
        """
        _refuse_vocabulary(model, self.config())
        try:
            with _own_seed(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # they stay tied here
                _peft().inject_adapter_in_model(self.config(), model, low_cpu_mem_usage=empty)
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise RecipeError(
                f"The adapters do not fit {type(model).__name__}: {first_line(error)} Name linear layers of it in "
                "lora.target_modules, or take all-linear."
            ) from error
        adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _train_in_place(model)
        own = {id(parameter) for parameter in model.parameters()}
        for parameter in adapters:
            if id(parameter) in own and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        if load and self.folder is not None:
            load_adapter(model, self.folder)


def _refuse_vocabulary(model: PreTrainedModel, config: LoraConfig) -> None:
    """The input embeddings and the head are looked at by the loss; an adapter on them would be passed over."""
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    names = [name for name, module in model.named_modules() if module in ends]
    targets = config.target_modules
    if isinstance(targets, str):
        hit = [] if targets == "all-linear" else [name for name in names if re.fullmatch(targets, name)]
    else:
        hit = [name for name in names if any(name == one or name.endswith(f".{one}") for one in targets or ())]
    if hit:
        raise RecipeError(
            f"lora.target_modules names {', '.join(hit)}, the student's embeddings or head, which the loss reads. Name "
            "it in modules_to_save instead (it is then trained whole), or leave it out."
        )


def _train_in_place(model: nn.Module) -> None:
    """Undo PEFT's copies of modules_to_save: the module itself is trained. What is tied stays tied, its names are the
    base model's, and there is no second copy.
    """
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.original_module.requires_grad_(True))


@contextmanager
def _own_seed() -> Iterator[None]:
    """Random numbers of the run's seed, whatever has been drawn before: a resumed run, and every rank, begin alike."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch.initial_seed())
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError(
            "lora, and a student that is an adapter folder, need PEFT: pip install 'simct_pl[lora]'."
        ) from error
    return peft
