"""`simct_pl align`: what it prints, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from simct_pl.alignment import CommonBoundaryAligner
from simct_pl.commands.align import ALIGNERS, colour_units, main
from simct_pl.errors import MissingFileError, PromptDataError
from simct_pl.tokenization.pair import TokenizerPair
from tests.tokenization import small
from tests.tokenization.real import CORPUS, corpus


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--student … --teacher …`, neither of which has a stop or a template."""
    arguments = []
    for role, hf in (("student", small.byte_level(eos=None)), ("teacher", small.sentencepiece_bpe(eos=None))):
        folder = tmp_path_factory.mktemp(role)
        hf.backend_tokenizer.save(str(folder / "tokenizer.json"))
        arguments += [f"--{role}", str(folder)]
    return arguments


def run_json(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> list[dict]:
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_of_a_text(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run_json(capsys, [*folders, "--text", "hello 👍 é"])
    pair = TokenizerPair.from_pretrained(folders[1], folders[3])
    alignment = CommonBoundaryAligner().align(pair.tokenize_text("hello 👍 é"))
    assert found == {
        "units": alignment.units_U6.tolist(),
        "student_tokens": len(pair.student.encode("hello 👍 é")),
        "teacher_tokens": len(pair.teacher.encode("hello 👍 é")),
        "coverage": 1.0,
        "shared_vocab": len(pair.shared_vocab),
        "lost": {},
    }
    assert found["units"][0][4:] == [0, 5]
    assert found["units"][-1][5] == len("hello 👍 é".encode())


def test_empty_text(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run_json(capsys, [*folders, "--text", ""])
    assert (found["units"], found["student_tokens"], found["coverage"]) == ([], 0, 0.0)
    assert found["lost"] == {"empty_response": 1}


@pytest.mark.parametrize("aligner", ALIGNERS)
def test_every_aligner_by_name(aligner: str, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run_json(capsys, [*folders, "--text", "happy world", "--aligner", aligner])
    if aligner in ("simct", "common_boundary"):
        assert found["coverage"] == 1.0
    else:
        assert all(row[1] > row[0] for row in found["units"])


def test_one_line_a_text(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, [*folders, "--file", str(CORPUS)])
    assert len(found) == 267
    for row, text in zip(found, corpus(), strict=True):
        assert all(0 <= unit[4] < unit[5] <= len(text.encode()) for unit in row["units"])


def test_a_single_text_on_a_terminal(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*folders, "--text", "hello world ▁!"]) == 0
    shown = capsys.readouterr().out
    for word in ("hello", "units", "coverage", "shared tokens", "1 normalizer", "│"):
        assert word in shown


def test_a_file_ends_in_a_table(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*folders, "--file", str(CORPUS)]) == 0
    shown = capsys.readouterr()
    for word in ("267 texts", "coverage", "student tokens", "1 empty_response"):
        assert word in shown.out
    assert "Traceback" not in shown.err


def test_colours_tell_units_apart(folders: list[str]) -> None:
    pair = TokenizerPair.from_pretrained(folders[1], folders[3])
    shown = colour_units(CommonBoundaryAligner().align(pair.tokenize_text("hello happy ▁ world")))
    assert shown.plain == "hello happy ▁ world"
    styles = {str(span.style) for span in shown.spans}
    assert len(styles) >= 4, "two alternating colours, 1:1 or several tokens, lost"
    assert any("strike" in style for style in styles)
    Console(force_terminal=True, width=80, file=open("/dev/null", "w", encoding="utf-8")).print(shown)  # noqa: SIM115


@pytest.mark.parametrize("source", [[], ["--text", "a", "--file", "b"]])
def test_one_of_text_and_file(folders: list[str], source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*folders, *source])
    assert stopped.value.code == 2
    assert "--text" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--aligner", "nonsense"], ["--jsonn"]])
def test_misspelt_options(folders: list[str], extra: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*folders, "--text", "a", *extra])
    assert stopped.value.code == 2


def test_a_missing_file(folders: list[str]) -> None:
    with pytest.raises(MissingFileError, match="no-such-file"):
        main([*folders, "--file", "no-such-file.jsonl"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"text": "a"}\n\nnot json\n', "line 3: not valid JSON"),
        (b'{"text": "a"}\n{"prompt": "b"}\n', 'line 2: expected an object with a string field "text"'),
        (b'["text"]', "line 1: expected an object"),
        (b'{"text": 3}', "line 1: expected an object"),
        (b'{"text": "\xff"}', "line 1: not valid JSON"),
        (b'{"text": "\\ud83d"}', r"line 1: '\\ud83d' is no character"),
    ],
)
def test_bad_files_name_the_line(folders: list[str], tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_bytes(content)
    with pytest.raises(PromptDataError, match=message):
        main([*folders, "--file", str(file)])


def test_bytes_of_a_shell_that_are_no_text(folders: list[str]) -> None:
    with pytest.raises(PromptDataError, match=r"--text: .* is no character"):
        main([*folders, "--text", b"a\xff".decode("utf-8", "surrogateescape")])


def test_it_does_not_need_torch(folders: list[str]) -> None:
    code = "import sys; from simct_pl.commands.align import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *folders, "--text", "a", "--json"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
