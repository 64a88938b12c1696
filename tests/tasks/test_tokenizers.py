"""The two tokenizers: exact bytes, other tokens, other templates, other stops."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from simct_pl.tasks.arithmetic import distinct_problems
from simct_pl.tasks.tokenizers import PROOF_MODELS, STUDENT, TEACHER, TWO_DIGIT_TEACHER, TinyModel
from simct_pl.tokenization.model_tokenizer import ModelTokenizer

EVERY = {"teacher": TEACHER, "student": STUDENT, "two_digit_teacher": TWO_DIGIT_TEACHER, **PROOF_MODELS}
SIDES = pytest.mark.parametrize("side", EVERY.values(), ids=EVERY)
TOKENIZERS = {id(side): ModelTokenizer(side.tokenizer()) for side in EVERY.values()}


def tokens(side: TinyModel, text: str) -> list[str]:
    """Spell the tokens of a text with _ for a space."""
    tokenizer = TOKENIZERS[id(side)]
    return [tokenizer.table[i].decode().replace(" ", "_") for i in tokenizer.encode(text)]


def test_the_same_text_is_cut_differently() -> None:
    text = "1+37= 38, total 40"
    assert tokens(TEACHER, text) == ["1", "+", "3", "7", "=", "_", "3", "8", ",", "_", "total", "_", "4", "0"]
    assert tokens(STUDENT, text) == ["1", "+", "3", "7", "=", "_3", "8", ",", "_to", "tal", "_4", "0"]


def test_two_digits_at_a_time_are_read_from_the_left() -> None:
    found = tokens(TWO_DIGIT_TEACHER, "7+13= 20, 138+1000= 1138, total 94281")
    numbers = ["7", "+", "13", "=", "_", "20", ",", "_", "13", "8", "+", "10", "00", "=", "_", "11", "38", ",", "_"]
    assert found == [*numbers, "total", "_", "94", "28", "1"]


def share_outside_one_to_one(side: TinyModel) -> float:
    """Share of the side's tokens in right chains whose bytes are no single token of the teacher, from byte offsets."""
    outside = total = 0
    for problem in distinct_problems(0, 200, 3, 50, held_out=True):
        spans = {}
        for one in (side, TEACHER):
            table, ids = TOKENIZERS[id(one)].table, TOKENIZERS[id(one)].encode(problem.response)
            ends = list(itertools.accumulate(len(table[i]) for i in ids))
            spans[id(one)] = set(zip([0, *ends], ends, strict=False))
        outside += len(spans[id(side)] - spans[id(TEACHER)])
        total += len(spans[id(side)])
    return outside / total


@pytest.mark.parametrize("name", [name for name in PROOF_MODELS if name.startswith("mismatch")])
def test_the_share_in_the_name_is_the_share_outside_one_to_one(name: str) -> None:
    assert round(100 * share_outside_one_to_one(PROOF_MODELS[name])) == int(name.removeprefix("mismatch_"))


def test_the_quickstarts_student_has_28_percent_outside_one_to_one() -> None:
    assert round(100 * share_outside_one_to_one(STUDENT)) == 28


@given(st.text(alphabet="0123456789+ =,total", max_size=30))
def test_a_number_is_cut_by_its_own_digits_alone(text: str) -> None:
    expected = [cut for number in re.findall(r"\d+", text) for cut in re.findall(r"\d\d?", number)]
    found = tokens(TWO_DIGIT_TEACHER, text)
    assert [token for token in found if any(map(str.isdigit, token))] == expected


@SIDES
@given(text=st.text(max_size=40))
def test_any_text_survives(side: TinyModel, text: str) -> None:
    tokenizer = TOKENIZERS[id(side)]
    assert tokenizer.table.join(tokenizer.encode(text)) == text.encode()


@SIDES
def test_every_byte_has_a_token(side: TinyModel) -> None:
    table = TOKENIZERS[id(side)].table
    single = {table[i] for i in range(len(table)) if not table.is_special_V[i] and len(table[i]) == 1}
    assert single == {bytes([byte]) for byte in range(256)}


@SIDES
def test_no_token_is_out_of_reach(side: TinyModel) -> None:
    """A token that its own bytes are not encoded to can only come from a non-canonical sample."""
    tokenizer = TOKENIZERS[id(side)]
    table = tokenizer.table
    words = [i for i in range(len(table)) if not table.is_special_V[i] and table[i].isascii()]
    assert [table[i] for i in words if tokenizer.encode(table[i].decode()) != [i]] == []


def test_each_side_has_its_own_template_and_stop() -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+2?"}]
    texts = {
        name: side.tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for name, side in EVERY.items()
    }
    assert texts["teacher"] == "<|bos|><|system|>Add.<|end|><|user|>1+2?<|end|><|assistant|>"
    assert texts["student"] == "<system>Add.</turn><user>1+2?</turn><assistant>"
    for side in EVERY.values():
        tokenizer = TOKENIZERS[id(side)]
        assert tokenizer.hf.convert_ids_to_tokens(list(tokenizer.stop_ids)) == [side.stop]


def test_only_the_teacher_has_a_bos_and_a_rendered_prompt_has_it_once() -> None:
    teacher, student = TOKENIZERS[id(TEACHER)], TOKENIZERS[id(STUDENT)]
    prompt = [{"role": "user", "content": "1+2?"}]
    assert teacher.hf("1").input_ids[0] == teacher.hf.bos_token_id  # a plain call adds one
    assert teacher.render_prompt(prompt).count(teacher.hf.bos_token_id) == 1
    assert student.hf.bos_token_id is None


def test_a_quarter_or_more_of_the_student_tokens_are_not_tokens_of_the_teacher() -> None:
    student, teacher = TOKENIZERS[id(STUDENT)], TOKENIZERS[id(TEACHER)]
    known = {teacher.table[i] for i in range(len(teacher.table))}
    responses = [problem.response for problem in distinct_problems(0, 200, 3, 50, held_out=False)]
    found = [student.table[i] not in known for text in responses for i in student.encode(text)]
    assert 0.25 < sum(found) / len(found) < 0.4


@SIDES
def test_an_untrained_folder_loads_by_the_auto_classes(side: TinyModel, tmp_path: Path) -> None:
    side.save_untrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "13+25= 38, total 38 é\n"
    assert tokenizer(text, add_special_tokens=False).input_ids == TOKENIZERS[id(side)].encode(text)
    assert tokenizer.chat_template == side.template
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.vocab_size == len(tokenizer)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.eos_token_id == config.eos_token_id
