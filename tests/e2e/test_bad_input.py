"""What users get wrong: one screen, exit code 2, no traceback, and no weights loaded for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from simct_pl.commands.main import main
from simct_pl.config.recipes import PACKAGE
from simct_pl.models import loading as simct_models

OBJECTIVE = "model: {init_args: {objective: {class_path: simct_pl.SimCTLoss, init_args: {%s}}}}"
ROLLOUTS = "trainer: {callbacks: [{class_path: callbacks.RolloutCallback, init_args: {sampling: {max_tokens: %d}}}]}"
STUDENT = PACKAGE / "assets/quickstart/student"


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were loaded before the input was refused")

    monkeypatch.setattr(simct_models.AutoModelForCausalLM, "from_pretrained", refuse)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; returns what it printed to stderr."""
    assert main(["fit", "--recipe", "quickstart", "--trainer.logger=false", *arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 24
    return message


def overlay(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: {max_stepz: 3}", "Did you mean 'trainer.max_steps'"),
        ("model: {init_args: {objectiv: 3}}", "Did you mean 'objective'"),
        (
            "model: {init_args: {objective: {class_path: simct_pl.SimCTLoss, init_args: {scor: 1}}}}",
            "Did you mean 'score'",
        ),
        ("model: {init_args: {optimizer: {lrr: 1}}}", "Did you mean 'lr'"),
        ("modle: {init_args: {student: x}}", "Did you mean 'model'"),
    ],
)
def test_unknown_keys_name_the_nearest_one(capsys: pytest.CaptureFixture[str], text: str, expected: str) -> None:
    assert expected in refused(capsys, "--recipe", overlay("o.yaml", text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [unclosed", "o.yaml"),
        ("model: {init_args: {optimizer: {lr: fast}}}", "fast"),
        ("model: {init_args: {objective: {class_path: simct_pl.Nothing}}}", "Nothing"),
        (OBJECTIVE % "rest: true, prefix: keep", "rest=True"),
        (OBJECTIVE % "rest: true, mass_threshold: 2", "drops nothing"),
        ("trainer: {accelerator: gpu, devices: 4}", "Lightning refuses"),
        ("trainer: {default_root_dir: /proc/none/x}", "Choose another output folder"),
        ("data: {init_args: {batch_size: 0}}", "batch_size=0"),
        ("model: {init_args: {student: '${oc.env:SIMCT_PL_NOT_SET}'}}", "SIMCT_PL_NOT_SET"),
        ("trainer: {callbacks: [callbacks.AlignmentStats]}", "callbacks.RolloutCallback"),
        ("model: {init_args: {sharding: {replicate: 1}}}", "simct_pl.models.sharding.ShardedStrategy"),
        ("model: {init_args: {sharding: {param_dtype: float16}}}", "loss scale"),
        (ROLLOUTS % 0, "max_tokens is 0"),
        (ROLLOUTS % 500, "context of 128"),
    ],
    ids=["yaml", "type", "class", "combination", "no effect", "devices", "root", "batch", "variable",
         "no rollouts", "no strategy", "float16", "no tokens", "too long"],
)  # fmt: skip
def test_recipes_that_cannot_run(capsys: pytest.CaptureFixture[str], text: str, expected: str) -> None:
    assert expected in refused(capsys, "--recipe", overlay("o.yaml", text))


def test_a_recipe_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'quickstart'" in refused(capsys, "--recipe", "quickstrat")
    assert main(["fit", "--recipe"]) == 2


def test_paths_that_are_no_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'/no/such/folder' does not exist" in refused(capsys, "--model.init_args.teacher=/no/such/folder")
    Path("empty").mkdir()
    assert "no config.json" in refused(capsys, "--model.init_args.teacher=./empty")
    Path("empty/adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    message = refused(capsys, "--model.init_args.teacher=./empty")
    assert "teacher './empty' is an adapter (LoRA), which changes the weights of org/base" in message
    assert "adapter_config.json that cannot be read: 'peft_type'" in refused(
        capsys, "--model.init_args.student=./empty"
    )
    shutil.copytree(STUDENT, "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "*.safetensors" in refused(capsys, "--model.init_args.student=./weightless")
    shutil.copytree(STUDENT, "strange")
    Path("strange/config.json").write_text('{"model_type": "no-such-architecture"}')
    assert "no-such-architecture" in refused(capsys, "--model.init_args.teacher=./strange")


def test_a_wordpiece_student(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(STUDENT, "wordpiece")
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "</turn>": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save("wordpiece/tokenizer.json")
    assert "WordPiece" in refused(capsys, "--model.init_args.student=./wordpiece")


def test_a_teacher_without_a_stop_token(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(STUDENT, "stopless")
    Path("stopless/chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads(Path("stopless", name).read_text())
        kept = {key: value for key, value in values.items() if not key.startswith("eos_token")}
        Path("stopless", name).write_text(json.dumps(kept))
    message = refused(capsys, "--model.init_args.teacher=./stopless")
    assert "MissingStopTokenError" in message
    assert "stopless" in message


def test_arguments_that_a_template_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--model.init_args.chat.teacher={enable_thinking: false}")
    assert "quickstart/teacher does not use the argument 'enable_thinking'; it has none" in message
    chat = overlay("o.yaml", "model: {init_args: {chat: {thinking: skip}}}")
    assert "Did you mean 'skipped'" in refused(capsys, "--recipe", chat)


def test_a_template_that_does_not_take_the_messages(capsys: pytest.CaptureFixture[str]) -> None:
    """One that says so, and one that leaves the system prompt out without a word."""
    Path("p.jsonl").write_text('{"prompt": "1+2?"}\n')
    init = "train: {path: p.jsonl}, batch_size: 1, system_prompt: Add."
    data = overlay("o.yaml", f"data: {{class_path: simct_pl.PromptDataModule, init_args: {{{init}}}}}")
    shutil.copytree(STUDENT, "mute")
    for role in ("student", "teacher"):
        for template, expected in (
            ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", "no system"),
            ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the system message"),
        ):
            Path("mute/chat_template.jinja").write_text(template)
            message = refused(capsys, "--recipe", data, f"--model.init_args.{role}=./mute")
            assert expected in message
            assert "./mute" in message


def test_an_empty_prompt_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.jsonl").touch()
    data = "data: {class_path: simct_pl.PromptDataModule, init_args: {train: {path: empty.jsonl}}}"
    assert "'empty.jsonl' is empty" in refused(capsys, "--recipe", overlay("o.yaml", data))


def test_no_command_and_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["trane"]) == 2
    assert "Unknown command 'trane'" in capsys.readouterr().err
    assert main(["--help"]) == 0
