"""The card of an exported student: what it says of the run, and that the hub reads its head."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from callbacks import HFExport
from simct_pl.tracking.run_info import RunInfo
from simct_pl.training.held_out import HeldOutResult
from simct_pl.training.model_card import model_card, public_name
from tests.tiny import data, distill_module, trainer

INFO = RunInfo("quickstart", "a:\n  b: 1\n", {"torch": "2.13.0"}, None)


def test_the_card_has_the_pair_the_objective_the_figures_and_the_recipe() -> None:
    module = distill_module()
    module.history += [HeldOutResult(0, {"eval/accuracy": 0.25}, []), HeldOutResult(1500, {"eval/accuracy": 0.5}, [])]
    card = ModelCard(model_card("mine", module, 1500, INFO))
    assert card.data.to_dict()["library_name"] == "transformers"
    assert "base_model" not in card.data.to_dict()  # a folder of this machine is no repository
    assert card.text.strip().startswith("# mine\n\n`student`, taught by `teacher` for 1,500 optimizer steps")
    assert "| metric | step 0 | step 1500 |\n|---|--:|--:|\n| eval/accuracy | 0.25 | 0.5 |" in card.text
    assert f"`{type(module.objective).__name__}`" in card.text
    assert str(Path(module.student_path).parent) not in card.text
    recipe = card.text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe) == {"a": {"b": 1}}
    assert "With torch 2.13.0." in card.text


def test_a_model_of_the_hub_keeps_its_name(tmp_path: Path) -> None:
    assert public_name("org/model") == "org/model"
    assert public_name(str(tmp_path)) == tmp_path.name
    module = distill_module()
    module.student_path = "org/model"
    assert ModelCard(model_card("mine", module, 1, None)).data.to_dict()["base_model"] == "org/model"


def test_an_export_of_a_fit_has_a_card(tmp_path: Path) -> None:
    export = HFExport(str(tmp_path / "student"))
    export.run_info = INFO
    trainer(tmp_path, export, max_steps=1, limit_val_batches=0).fit(distill_module(), datamodule=data())
    text = (tmp_path / "student" / "README.md").read_text()
    assert "for 1 optimizer steps" in text
    assert "a:\n  b: 1" in text
