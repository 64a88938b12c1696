"""The command: its page, its exit code, and the findings that need a whole run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from simct_pl.commands.preflight import main
from simct_pl.config.lightning_cli import open_recipes
from simct_pl.config.recipes import PACKAGE
from simct_pl.errors import ExportError, RecipeError
from simct_pl.planning.memory import Moment
from simct_pl.planning.run import PlannedRun, PlanningCLI, plan_run
from simct_pl.planning.section import Section
from simct_pl.preflight.findings import Finding, Severity
from simct_pl.preflight.page import html
from simct_pl.preflight.pair_report import shared_findings, span_findings
from simct_pl.preflight.report import Preflight, length_findings, memory_findings
from simct_pl.preflight.taught import TITLE
from simct_pl.preflight.units import domain_reports


@pytest.fixture(scope="module")
def planned() -> PlannedRun:
    """The quickstart with the paper's candidates."""
    arguments = ["fit", "--recipe", "quickstart", "--recipe", "ablations/simct_paper"]
    return plan_run(open_recipes(arguments, PlanningCLI), None, num_prompts=32)


def test_the_command_prints_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        '{"q": "1+2+3?", "a": "1+2= 3, 3+3= 6, total 6", "kind": "small"}',
        '{"q": "19+29+9?", "a": "19+29= 48, 48+9= 57, total 57", "kind": "large"}',
    ]
    prompts.write_text("\n".join(rows))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "data:\n  class_path: simct_pl.PromptDataModule\n  init_args:\n    batch_size: 2\n"
        f"    train: {{path: {prompts}, prompt_field: q, response_field: a}}\n"
    )
    student = tmp_path / "student"
    shutil.copytree(PACKAGE / "assets/quickstart/student", student)
    with (student / "chat_template.jinja").open("a") as template:
        template.write("{% if hurry %}{{ '+' }}{% endif %}")
    recipe.write_text(
        recipe.read_text() + "model:\n  init_args:\n    chat: {student: {hurry: true}, thinking: left_out}\n"
    )
    shown = ["--recipe", "quickstart", "--recipe", str(recipe), "--score", "true", "--domain_field", "kind"]
    shown.append(f"--model.init_args.student={student}")
    assert main(shown) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "runs/quickstart+mine/preflight.html").read_text()
    for expected in ("small", "large", "</turn>", "Verdict: ", "better predicted by the teacher"):
        assert expected in printed
    assert "&lt;user&gt;1+2+3?&lt;/turn&gt;&lt;assistant&gt;+" in page  # the student's template and argument, escaped
    assert "hurry=True" in printed
    assert "where it writes one, is left out" in printed
    assert "http" not in page  # nothing is fetched
    figures = json.loads((tmp_path / "runs/quickstart+mine/preflight.json").read_text())
    assert figures["verdict"] in printed
    assert figures["agreement"]["languages"]["numbers"]["verdict"] == "fine"
    assert {section["title"] for section in figures["sections"]} >= {"Models", TITLE}
    assert TITLE in printed


def test_several_teachers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has its units, its scores and its findings; rows count for the one that they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        '{"q": "1+2+3?", "a": "1+2= 3, 3+3= 6, total 6", "by": "digits"}',
        '{"q": "2+2+3?", "a": "2+2= 4, 4+3= 7, total 7", "by": "digits"}',
        '{"q": "19+29+9?", "a": "19+29= 48, 48+9= 57, total 57", "by": "pairs"}',
    ]
    prompts.write_text("\n".join(rows))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "data:\n  class_path: simct_pl.PromptDataModule\n  init_args:\n    batch_size: 2\n"
        f"    train: {{path: {prompts}, prompt_field: q, response_field: a, teacher_name_field: by}}\n"
    )
    shown = ["--recipe", "quickstart", "--recipe", "several_teachers", "--recipe", str(recipe), "--score", "true"]
    assert main([*shown, "--agreement", "false"]) == 0
    figures = json.loads((tmp_path / "runs/quickstart+several_teachers+mine/preflight.json").read_text())
    sections = {section["title"]: section for section in figures["sections"]}
    assert sections["Models"]["headers"] == ["", "student", "digits", "pairs"]
    responses = [
        dict(sections[f"Is the teacher better? ({name})"]["rows"])["responses"] for name in ("digits", "pairs")
    ]
    assert [words.split()[2] for words in responses] == ["2", "1"]
    assert sections["A prompt as the teacher pairs reads it"]["text"]
    shares = {name: figures["teachers"][name]["outside_1_1"] for name in ("digits", "pairs")}
    assert shares["digits"] != shares["pairs"]
    assert any(reason.partition(": ")[2].startswith("pairs: ") for reason in figures["reasons"])  # one response is few
    assert "Units of your own texts (pairs)" in capsys.readouterr().out


def test_an_objective_with_classes_reports_them_and_the_scene_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    shown = ["--recipe", "quickstart", "--recipe", "ablations/token_conditional", "--score", "false"]
    assert main([*shown, "--num_prompts", "8", "--agreement", "false"]) == 0
    printed = capsys.readouterr().out
    assert "Not run: --agreement false." in printed
    assert "Classes of first tokens" in printed
    figures = json.loads((tmp_path / "runs/quickstart+token_conditional/preflight.json").read_text())
    assert figures["agreement"] is None
    assert 0 < figures["classes"]["student_bits"]["kept"] <= figures["classes"]["student_bits"]["token"]


def test_options_that_make_no_sense_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("num_prompts", "num_scored"):
        with pytest.raises(RecipeError, match=f"--{name} 0"):
            main(["--recipe", "quickstart", f"--{name}", "0"])
    with pytest.raises(ExportError, match="is a folder"):
        main(["--recipe", "quickstart", "--output", str(tmp_path)])


def test_an_unfit_pair_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of 128 tokens, and responses of 200."""
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "long.yaml"
    recipe.write_text(
        "trainer:\n  callbacks:\n    - class_path: callbacks.RolloutCallback\n      init_args:\n"
        "        sampling: {max_tokens: 200}\n"
    )
    assert main(["--recipe", "quickstart", "--recipe", str(recipe), "--score", "false", "--num_prompts", "4"]) == 1
    page = (tmp_path / "runs/quickstart+long/preflight.html").read_text()
    assert 'class="verdict STOP"' in page
    assert "exceed the student&#39;s context of 128" in page


def test_prefix_keep_with_many_spans_needs_care(planned: PlannedRun) -> None:
    domains = domain_reports(planned.module.pair, planned.module.aligner, planned.samples)
    (finding,) = span_findings(planned.module.first_lesson, domains)
    assert finding.severity == Severity.CARE
    assert "prefix=marginal" in finding.text
    assert (
        span_findings(planned.module.first_lesson, [replace(one, num_one_to_one=one.num_units) for one in domains])
        == []
    )


def test_memory_and_lengths_are_judged(planned: PlannedRun) -> None:
    plan = planned.plan
    assert memory_findings(planned) == []
    assert length_findings(planned) == []
    assert shared_findings(planned.module.first_lesson) == []
    for share, expected in ((0.95, Severity.CARE), (1.05, Severity.STOP)):
        item = replace(plan.memory[0], bytes=share * plan.deployment.memory, when=Moment.ALWAYS)
        (finding,) = memory_findings(replace(planned, plan=replace(plan, memory=[item])))
        assert finding.severity == expected
    (missing,) = memory_findings(replace(planned, plan=replace(plan, why_not=("it reads token by token",))))
    assert missing.severity == Severity.CARE
    assert "lacks a part: it reads token by token" in missing.text
    long_prompts = replace(planned, lengths=replace(planned.lengths, student_prompt=100, teacher_prompt=100))
    assert [finding.severity for finding in length_findings(long_prompts)] == [Severity.STOP, Severity.CARE]
    longer_for_the_teacher = replace(planned, lengths=replace(planned.lengths, teacher_prompt=100))
    assert [finding.severity for finding in length_findings(longer_for_the_teacher)] == [Severity.CARE]


def test_a_page_leads_with_the_worst() -> None:
    findings = (Finding(Severity.STOP, "No <stop>."), Finding(Severity.CARE, "Hm."))
    page = html(Preflight("mine", (Section("A", ("", "x"), [("y", "<z>")]),), findings))
    assert 'class="verdict STOP"' in page
    assert page.index("No &lt;stop&gt;.") < page.index("Hm.")
    assert "&lt;z&gt;" in page
