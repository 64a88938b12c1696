"""Two models that agree: what holds of the scene, and what today's objectives are known to do in it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import simct_pl
from benchmarks.agreement import METHODS, TOYS
from simct_pl import (
    BPMLoss,
    CommonBoundaryAligner,
    CrossEntropyLoss,
    SimCTLoss,
    TokenConditionalLoss,
    distillation_loss,
)
from simct_pl.preflight.agreement import SMOOTHING, Agreement, Scene, measure, whole_loss
from simct_pl.preflight.languages import LANGUAGES, SUMS, Language
from simct_pl.preflight.listed_tokenizer import ListedTokenizer, cut_down, longest_match
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from tests.tokenization.real import real_tokenizer

FLOOR = 0.002  # nats a text that smoothing moves by itself


@cache
def toy(name: str) -> ListedTokenizer:
    return longest_match(TOYS[name], name)


@cache
def scene(student: str, teacher: str) -> Scene:
    return Scene.of(SUMS, toy(student), toy(teacher))


def judged(method: str, given: Scene) -> Agreement:
    one = METHODS[method]
    return measure(given, one.objective(), one.aligner, on_policy=one.on_policy)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_language_is_a_distribution_over_texts_that_begin_alike(name: str) -> None:
    texts = LANGUAGES[name]
    assert sum(texts.values()) == pytest.approx(1)
    assert len(texts) >= 8
    assert len({text[:3] for text in texts}) == 1


def check_both_sides(language: Language, student: ModelTokenizer, teacher: ModelTokenizer) -> None:
    """Each model gives each text its probability, in tokens that spell it as its tokenizer does."""
    made = Scene.of(language, student, teacher)
    bases = student, teacher
    for table, small, base in zip(
        (made.student, made.teacher), (made.pair.student, made.pair.teacher), bases, strict=True
    ):
        p_N = table.text_logp(table.logits(made.p_N)).exp()
        longest = max(map(len, table.ids))
        torch.testing.assert_close(p_N, made.p_N, rtol=3 * SMOOTHING * longest, atol=0)
        for text, ids in zip(made.texts, table.ids, strict=True):
            assert ids[-1] == small.stop_ids[0]
            assert [small.table[i] for i in ids[:-1]] == [base.table[i] for i in base.encode(text)]
    assert all(not tokens.student.faults_N.any() and not tokens.teacher.faults_N.any() for tokens in made.tokenized)


def test_both_models_write_the_texts_with_their_probabilities() -> None:
    check_both_sides(SUMS, toy("digits"), toy("pairs"))


def test_the_loss_is_the_expectation_over_texts() -> None:
    """Text by text through distillation_loss, with a student's own probabilities as weights."""
    made = scene("digits", "pairs")
    table_RK = made.disagreeing()
    weights = [float(p) for p in made.student.text_logp(table_RK).exp()]
    teacher_RK, total = made.teacher.logits(made.p_N), 0.0
    for n, tokens in enumerate(made.tokenized):
        loss = distillation_loss(
            table_RK[made.student.rows[n]],
            teacher_RK[made.teacher.rows[n]],
            CommonBoundaryAligner().align(tokens),
            made.pair.shared_vocab,
        )
        total += weights[n] / sum(weights) * float(loss)
    found = made.expected_loss(SimCTLoss(), CommonBoundaryAligner())(table_RK)
    assert float(found) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.is_divergence])
def test_two_models_of_one_tokenizer_are_taught_nothing(method: str) -> None:
    found = judged(method, scene("pairs", "pairs"))
    assert abs(found.loss) < 1e-9
    assert found.drift < FLOOR


def test_answers_of_the_teacher_teach_the_texts_whatever_the_tokenizers() -> None:
    """A right objective is not refused by the scene: likelihood of the language's texts knows no cuts."""
    for sides in (("digits", "pairs"), ("pairs", "digits")):
        found = measure(scene(*sides), CrossEntropyLoss(), CommonBoundaryAligner(), on_policy=False)
        assert found.drift < FLOOR
        assert found.end < 0.5 * found.start


@pytest.mark.parametrize(
    ("method", "loss", "drift"), [("SimCT (paper)", 4, 2), ("exact", 4, 2), ("`marginal`", 1, 1), ("BPM", 0.1, 0.05)]
)
def test_digits_under_pairs_of_digits_are_told_that_numbers_are_over(method: str, loss: float, drift: float) -> None:
    """Known faults: a teacher that has read `3` as a whole token says that no digit follows."""
    found = judged(method, scene("digits", "pairs"))
    assert found.loss > loss
    assert found.drift > drift


def test_a_real_pair_agrees_about_words_and_not_about_indentation() -> None:
    """Mistral puts a word's space into the word, Qwen into the run of spaces before it: BPM feels it less, and leaves
    rows of white space out.
    """
    student, teacher = real_tokenizer("qwen"), real_tokenizer("mistral")
    check_both_sides(LANGUAGES["indented code"], student, teacher)
    code = Scene.of(LANGUAGES["indented code"], student, teacher)
    marginal, some, every = (
        measure(code, objective, CommonBoundaryAligner(), steps=5)
        for objective in (SimCTLoss("sum_logprob", "marginal"), BPMLoss(), BPMLoss(skip_blank=False))
    )
    assert marginal.loss > 5
    assert 0.1 < some.loss < every.loss < marginal.loss
    words = Scene.of(LANGUAGES["words"], student, teacher)
    assert measure(words, SimCTLoss("sum_logprob", "marginal"), CommonBoundaryAligner(), steps=5).loss < 0.01


@pytest.mark.parametrize("name", ["Chinese and Japanese", "emoji", "numbers"])
def test_characters_in_several_tokens_are_written_too(name: str) -> None:
    check_both_sides(LANGUAGES[name], real_tokenizer("qwen"), real_tokenizer("mistral"))


def test_a_text_that_is_not_in_the_list_has_a_token_without_bytes() -> None:
    small = cut_down([toy("pairs")], ["12"])[0]
    unknown = len(small.table) - 1
    assert [small.table[i] for i in small.encode("12")] == [b"12"]
    assert small.encode("+12") == [unknown, *small.encode("12")]
    assert not small.table.is_mapped_V[unknown]
    assert small.table.tokens == [b"1", b"12", b"2", b"<stop>", b""]
    digits = toy("digits")
    assert [digits.table[i] for i in digits.encode("1x2")] == [b"1", b"", b"2"]


def test_every_objective_that_compares_rows_is_a_method() -> None:
    """DSKD compares hidden states; a mixture is what its parts are."""
    made = {type(one.objective()).__name__ for one in METHODS.values()}
    objectives = {name for name in simct_pl.__all__ if name.endswith(("Loss", "KL")) and name != "MixtureLoss"}
    assert made == objectives


@pytest.mark.parametrize("name", ["numbers", "indented code", "lists", "Chinese and Japanese", "emoji"])
@pytest.mark.parametrize(
    "sides", [("qwen", "mistral"), ("mistral", "qwen"), ("deepseek", "smollm2"), ("smollm2", "deepseek")]
)
def test_real_pairs_that_agree_have_nothing_to_learn_by_one_question_a_token(sides: tuple[str, str], name: str) -> None:
    """The law of agreement, where `marginal` has up to 11 nats a text."""
    made = Scene.of(LANGUAGES[name], *map(real_tokenizer, sides))
    with torch.no_grad():
        found = made.expected_loss(TokenConditionalLoss(), CommonBoundaryAligner())(made.student.logits(made.p_N))
    assert 0 <= float(found) < 0.005


@pytest.mark.parametrize("sides", [("smollm2", "mistral"), ("deepseek", "smollm2")])
def test_punctuation_that_one_side_groups_otherwise_teaches_nothing(sides: tuple[str, str]) -> None:
    """`br`·`/`·`>.` and `br`·`/>`·`.`, with all punctuation that the two have."""
    both = [real_tokenizer(name) for name in sides]
    tokens = [as_text(token) for tokenizer in both for token in tokenizer.table.tokens]
    punctuation = [text for text in tokens if text and not any(map(str.isalnum, text))]
    pair = TokenizerPair(*cut_down(both, [*LANGUAGES["markup"], *punctuation]))
    assert 0 <= whole_loss(LANGUAGES["markup"], pair, TokenConditionalLoss(), CommonBoundaryAligner()) < 0.005


def test_a_line_break_inside_a_teachers_token_changes_little() -> None:
    """The teacher writes a paragraph in one token before a space and in two before a word: in front of the word, the
    one token is none that the student's text could have.
    """
    made = Scene.of(LANGUAGES["line breaks"], *map(real_tokenizer, ("deepseek", "smollm2")))
    found = measure(made, TokenConditionalLoss(), CommonBoundaryAligner())
    assert 0 <= found.loss < 0.1
    assert found.drift < 0.0025
    assert found.end < 0.25 * found.start


def test_a_teacher_token_begins_what_the_student_reads_in_it_alone() -> None:
    r"""In front of a `"` the student reads the teacher's `\]` as `\`·`]"`, and alone as `\`·`]`."""
    made = Scene.of(LANGUAGES["markup"], *map(real_tokenizer, ("smollm2", "deepseek")))
    found = measure(made, TokenConditionalLoss(), CommonBoundaryAligner())
    assert 0 <= found.loss < 0.06
    assert found.drift < 0.001
