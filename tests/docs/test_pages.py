"""What the pages name is there: other pages, metrics, classes, recipes."""

from __future__ import annotations

import json
import re
from inspect import signature

import pytest
import yaml

import callbacks
import simct_pl
from scripts.list_recipes import recipe_table
from simct_pl import errors
from simct_pl.data.source import PromptSource
from simct_pl.lab.sweep_file import SweepFile
from simct_pl.tokenization.thinking import CHOICES
from simct_pl.training.chat import ChatSettings
from simct_pl.training.step_timer import PHASES
from simct_pl.training.text_kl import TextKL
from simct_pl.types import LostReason
from tests.docs.pages import DOCS, ROOT, files_of, read

PAGES = ["README.md", "concepts.md", "recipes.md", "troubleshooting.md", "extending.md", "library.md"]
CLASS_HOMES = (errors, callbacks, simct_pl)
# Named in the pages, and at home in a module of their own.
OTHER_CLASSES = {
    "Aligner": "simct_pl.alignment.base",
    "ArithmeticDataModule": "simct_pl.tasks.datamodule",
    "GradedPrompts": "simct_pl.evaluation.benchmarks.graded_prompts",
    "HFEngine": "simct_pl.rollout.hf",
    "MergingAligner": "simct_pl.alignment.coarse",
    "NumberAligner": "docs/extending.md",
    "Objective": "simct_pl.losses.base",
    "ModelCheckpoint": "lightning.pytorch.callbacks",
    "ChatSettings": "simct_pl.training.chat",
    "StepRecord": "simct_pl.types",
    "PromptBatch": "simct_pl.types",
    "Rollout": "simct_pl.types",
    "TokenizedPair": "simct_pl.tokenization.pair",
    "UnitAlignment": "simct_pl.types",
    "UnitChunk": "simct_pl.losses.base",
    "UnitLosses": "simct_pl.losses.base",
}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", read(page))
    missing = [link for link in links if not link.startswith("http") and not (DOCS / link).exists()]
    assert missing == []


def test_the_map_names_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#]+)", read("README.md")))
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= links


def names(page: str, pattern: str) -> set[str]:
    """What stands in backticks and matches a pattern."""
    return {name for name in re.findall(r"`([^`\n]+)`", read(page)) if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("page", ["concepts.md", "troubleshooting.md"])
def test_metrics_are_logged_by_somebody(page: str) -> None:
    sources = [
        path.read_text(encoding="utf-8") for room in ("simct_pl", "callbacks") for path in (ROOT / room).rglob("*.py")
    ]
    code = "\n".join(sources)
    named = names(page, r"(?:loss|align|rollout|policy|optim|timing|eval)/[\w<>/]+")
    assert len(named) > 10
    built = {f"timing/share/{phase}" for phase in PHASES} | {"timing/share/<phase>", "align/lost_<reason>"}
    for group in ("policy", "eval"):
        built |= TextKL(0.0, 0.0, 0.0).metrics(f"{group}/text_kl").keys()
    metrics = (ROOT / "simct_pl/training/held_out.py").read_text(encoding="utf-8")
    listed = re.search(r"names = \((.*)\)", metrics)
    assert listed is not None
    held_out = {f"eval/{name}" for name in re.findall(r"\w+", listed[1])}
    assert {name for name in named if f'"{name}"' not in code} <= built | held_out


@pytest.mark.parametrize("page", PAGES)
def test_classes_exist(page: str) -> None:
    named = names(page, r"(?:callbacks\.|simct_pl\.)?[A-Z]\w*[a-z]\w*[A-Z]\w*|Checkpoint|Objective|Aligner|Rollout")
    for name in (name.rpartition(".")[2] for name in named):
        assert name in OTHER_CLASSES or any(hasattr(home, name) for home in CLASS_HOMES), name


def test_every_reason_is_explained() -> None:
    assert {f"`{reason}`" for reason in LostReason} <= set(
        re.findall(r"^\| (`\w+`) \|", read("troubleshooting.md"), re.M)
    )


def test_the_table_of_recipes_is_that_of_today() -> None:
    assert recipe_table() in read("recipes.md"), "run: python scripts/list_recipes.py --write true"


def test_the_sweep_of_the_page_can_be_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "sweep.yaml"
    path.write_text(files_of("recipes.md")["sweep.yaml"], encoding="utf-8")
    cells = SweepFile.load(path).cells(tmp_path)
    assert len(cells) == 2 * 2 * 2
    assert "exact, num_val_prompts=100" in {cell.method for cell in cells}
    assert yaml.safe_load(cells[0].overlay)["trainer"]["max_steps"] == 20


def test_the_conversation_of_the_page_can_be_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (row,) = (block for block in re.findall(r"```json\n(.*?)```", read("recipes.md"), re.S) if "tool_calls" in block)
    fields = yaml.safe_load(files_of("recipes.md")["conversations.yaml"])["data"]["init_args"]["train"]
    (tmp_path / fields["path"]).write_text(json.dumps(json.loads(row)) + "\n", encoding="utf-8")
    source = PromptSource(**{**fields, "path": str(tmp_path / fields["path"])})
    ((index, values),) = source.rows()
    prompt = source.prompt(index, values)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool"]
    assert (prompt.response, len(prompt.tools)) == ("It is 21 degrees.", 1)
    assert {"tools_field", "tools", "tools_required: false"} <= names("recipes.md", r"[\w: ]+")


def test_the_chat_settings_of_the_page_are_settings() -> None:
    values = yaml.safe_load(files_of("recipes.md")["chat.yaml"])
    chat = ChatSettings(**values["model"]["init_args"]["chat"])
    assert chat.student == {"enable_thinking": False}
    assert values["data"]["init_args"].keys() <= signature(simct_pl.PromptDataModule).parameters.keys()
    rows = re.findall(r"^\| `(\w+)` \|", read("recipes.md"), re.M)
    assert set(CHOICES) <= set(rows)
