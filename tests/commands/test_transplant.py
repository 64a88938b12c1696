"""Tiny bodies on tiny vocabularies, so that every new row can be named by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simct_pl.commands.transplant import main
from simct_pl.errors import MissingFileError, MissingStopTokenError, ModelFolderError, RecipeError
from simct_pl.models.transplant import PLAIN_CHAT_TEMPLATE, RowSource, longest_match, plan_rows
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.loading import load_tokenizer

OLD_MERGES = [("h", "a"), ("p", "p"), ("Ġ", "ha"), ("Ð", "°")]  # the last one is the Cyrillic letter а
NEW_MERGES = [("h", "a"), ("ha", "p"), ("p", "y"), ("hap", "py"), ("ð", "Ł"), ("Ġ", "ha"), ("Ð", "°")]
OLD_SPECIALS, NEW_SPECIALS = ["<old_start>", "<old_stop>"], ["<s>", "</s>", "<extra>"]
OLD_TEMPLATE = (
    "{% for m in messages %}{{ '<old_start>' + m['content'] + '<old_stop>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<old_start>' }}{% endif %}"
)


def make_tokenizer(merges: list[tuple[str, str]], specials: list[str], **names: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with all 256 bytes, the merges, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture
def old_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(OLD_MERGES, OLD_SPECIALS, bos_token="<old_start>", eos_token="<old_stop>")
    tokenizer.chat_template = OLD_TEMPLATE
    return tokenizer


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "new_tokenizer"
    make_tokenizer(NEW_MERGES, NEW_SPECIALS, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path, old_tokenizer: PreTrainedTokenizerFast) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(old_tokenizer) + 6,  # six padding rows, which must not enter any mean
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=request.param,
        bos_token_id=old_tokenizer.bos_token_id,
        eos_token_id=old_tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.data[len(old_tokenizer) :] = 1e3
    folder = tmp_path / "old"
    model.save_pretrained(folder)
    old_tokenizer.save_pretrained(folder)
    return folder


def run(model_folder: Path, new_folder: Path, output: Path, *more: str) -> None:
    assert main(["--model", str(model_folder), "--tokenizer", str(new_folder), "--output", str(output), *more]) == 0


def tables(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {"embedding": model.get_input_embeddings().weight.data, "head": model.get_output_embeddings().weight.data}


def ids_of(folder: Path) -> Mapping[str, int]:
    return AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize("table", ["embedding", "head"])
def test_rows_come_from_where_they_should(model_folder: Path, new_folder: Path, tmp_path: Path, table: str) -> None:
    run(model_folder, new_folder, tmp_path / "student")
    old_rows, new_rows = tables(model_folder)[table], tables(tmp_path / "student")[table]
    old, new = ids_of(model_folder), ids_of(tmp_path / "student")
    assert new_rows.shape == (256 + len(NEW_MERGES) + len(NEW_SPECIALS), 16)

    same_bytes = [*pre_tokenizers.ByteLevel.alphabet(), "ha", "Ġha", "Ð°"]
    for token in same_bytes:
        assert torch.equal(new_rows[new[token]], old_rows[old[token]]), token
    assert torch.equal(new_rows[new["<s>"]], old_rows[old["<old_start>"]])
    assert torch.equal(new_rows[new["</s>"]], old_rows[old["<old_stop>"]])

    composed = {"hap": ["ha", "p"], "py": ["p", "y"], "happy": ["ha", "pp", "y"], "ðŁ": ["ð", "Ł"]}
    for token, pieces in composed.items():
        expected = torch.stack([old_rows[old[piece]] for piece in pieces]).mean(dim=0)
        torch.testing.assert_close(new_rows[new[token]], expected)
    torch.testing.assert_close(new_rows[new["<extra>"]], old_rows[: len(old)].mean(dim=0))


def test_an_old_token_without_a_row_is_no_source(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    """As Gemma-3-1B's image token, whose id lies one beyond the last row."""
    run(model_folder, new_folder, tmp_path / "plain")
    file = model_folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens([AddedToken(f"<image{i}>", special=True) for i in range(7)])  # there are six rows
    tokenizer.save(str(file))
    run(model_folder, new_folder, tmp_path / "student")
    found, expected = tables(tmp_path / "student"), tables(tmp_path / "plain")
    extra = ids_of(tmp_path / "student")["<extra>"]  # the mean of all rows, of which there are now more
    for name, old_rows in tables(model_folder).items():
        torch.testing.assert_close(found[name][extra], old_rows.mean(dim=0))
        assert torch.equal(found[name][:extra], expected[name][:extra])


def test_a_tied_head_stays_tied_and_an_untied_one_apart(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    run(model_folder, new_folder, tmp_path / "student")
    is_tied = AutoModelForCausalLM.from_pretrained(model_folder).config.tie_word_embeddings
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert (student.get_input_embeddings().weight is student.get_output_embeddings().weight) == is_tied


def test_the_body_is_untouched(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    run(model_folder, new_folder, tmp_path / "student")
    before = AutoModelForCausalLM.from_pretrained(model_folder).model.layers.state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "student").model.layers.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_result_loads_and_generates_with_the_new_stop(
    model_folder: Path, new_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_folder, new_folder, tmp_path / "student")
    printed = capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    stop = tokenizer.convert_tokens_to_ids("</s>")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == stop
    assert model.generation_config.bos_token_id == tokenizer.convert_tokens_to_ids("<s>")
    assert tokenizer("happy").input_ids == load_tokenizer(str(new_folder))[0]("happy").input_ids
    output = model.generate(torch.tensor([tokenizer("happy").input_ids]), max_new_tokens=3, do_sample=False)
    assert output.shape[1] <= 1 + 3
    assert f"exact: {256 + 3:7d} rows" in printed
    assert "composed:       4 rows" in printed
    assert "role:       2 rows" in printed
    assert "fallback:       1 rows" in printed


def test_the_bodys_template_is_carried_over_with_the_new_stop(
    model_folder: Path, new_folder: Path, tmp_path: Path
) -> None:
    run(model_folder, new_folder, tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s>hi</s><s>"


def test_the_new_tokenizers_own_template_wins(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    (new_folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    run(model_folder, new_folder, tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_without_any_template_a_plain_one_is_written(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    (model_folder / "chat_template.jinja").unlink()
    run(model_folder, new_folder, tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "User: 2+2?\nAssistant: 4</s>\nAssistant:"


def test_another_stop_can_be_named(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    run(model_folder, new_folder, tmp_path / "student", "--stop", "<extra>")
    old, new = ids_of(model_folder), ids_of(tmp_path / "student")
    rows, old_rows = tables(tmp_path / "student")["embedding"], tables(model_folder)["embedding"]
    assert torch.equal(rows[new["<extra>"]], old_rows[old["<old_stop>"]])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert model.generation_config.eos_token_id == new["<extra>"]


def test_bad_input_is_refused_and_writes_nothing(model_folder: Path, new_folder: Path, tmp_path: Path) -> None:
    output, empty = tmp_path / "student", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingFileError, match="nowhere"):
        run(tmp_path / "nowhere", new_folder, output)
    with pytest.raises(ModelFolderError, match=r"expected tokenizer\.json"):
        run(model_folder, empty, output)
    with pytest.raises(RecipeError, match="exists"):
        run(model_folder, new_folder, empty)
    (new_folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(MissingStopTokenError, match="new tokenizer"):
        run(model_folder, new_folder, output)
    with pytest.raises(MissingStopTokenError, match="<no such token>"):
        run(model_folder, new_folder, output, "--stop", "<no such token>")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "new_tokenizer", "empty"}


def test_an_encoder_that_changes_the_text_is_not_believed() -> None:
    """A SentencePiece-like old tokenizer spells ` ab` for `ab`; the longest tokens that fit are taken instead."""
    old = TokenBytes.from_list([b"a", b"b", b" ab", b"\xf0"], dummy_prefix=True)
    new = TokenBytes.from_list([b"ab", b" ab", b"\xf0\x9f", b"a", None])
    plan = plan_rows(new, old, lambda texts: [[2]] * len(texts), roles={})
    assert plan.sources == (
        RowSource.COMPOSED,
        RowSource.EXACT,
        RowSource.FALLBACK,  # the old vocabulary has no token for the byte 9f
        RowSource.EXACT,
        RowSource.FALLBACK,  # an id without bytes
    )
    rows_RH = torch.tensor([[1.0], [2.0], [4.0], [9.0]], dtype=torch.bfloat16)
    assert plan.rows(rows_RH).flatten().tolist() == [1.5, 4.0, 4.0, 1.0, 4.0]
    assert plan.rows(rows_RH).dtype == torch.bfloat16


def test_a_byte_fallback_token_yields_to_the_ordinary_one_with_its_bytes() -> None:
    old = TokenBytes.from_list([b"1", b"1"], fallback_ids=[0])
    plan = plan_rows(TokenBytes.from_list([b"1"]), old, lambda texts: [], roles={})
    assert plan.pieces.tolist() == [1]


def test_a_twin_in_the_new_vocabulary_does_not_share_the_row() -> None:
    """With one row for both, `<0x31>` would be sampled as often as `1`, in spellings that no tokenizer makes."""
    new = TokenBytes.from_list([b"1", b"1"], fallback_ids=[0])
    plan = plan_rows(new, TokenBytes.from_list([b"0", b"1"]), lambda texts: [], roles={})
    assert plan.sources == (RowSource.FALLBACK, RowSource.EXACT)
    assert plan.rows(torch.tensor([[2.0], [4.0]])).flatten().tolist() == [3.0, 4.0]


def test_longest_match_is_greedy_and_all_or_nothing() -> None:
    ids = {b"a": 0, b"ab": 1, b"abc": 2, b"d": 3}
    assert longest_match(b"abcdab", ids, longest=3) == [2, 3, 1]
    assert longest_match(b"abx", ids, longest=3) == []
