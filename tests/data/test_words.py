"""Words of a text: what counts as the same prompt, and what does not, case by case."""

from __future__ import annotations

import pytest

from simct_pl.data.overlap import OverlapIndex
from simct_pl.data.words import digest_of, ngrams, words_of
from simct_pl.errors import RecipeError

SAME = [
    ("Janet sells 1,000 eggs.", "janet  sells\n1000 EGGS"),
    ("a naïve café", "A NAIVE CAFE"),
    ("ﬁve ＡＢＣ １２", "five abc 12"),
    ("Straße", "STRASSE"),
    ("“Really?” — she asked…", '"Really" she asked'),
    ("- **Find** the sum:\n* one", "Find the sum one"),
    ("3 − 4", "3-4"),
    ("2×3", "2 * 3"),
    ("20cm", "20 cm"),
    ("e\u0301tude", "\u00e9tude"),
    ("13+25+7?", " 13 + 25 + 7 ?"),
    ("小明有3个苹果。", "小明有 3 个苹果"),
]
DIFFERENT = [
    ("3+4", "3-4"),
    ("3.5 eggs", "35 eggs"),
    ("12 eggs", "1 2 eggs"),
    ("1,00 eggs", "100 eggs"),
    ("not prime", "prime"),
    ("x^2", "x 2"),
    ("小明有3个苹果", "小红有3个苹果"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_spellings_of_one_text_have_the_same_words(first: str, second: str) -> None:
    assert words_of(first) == words_of(second)
    assert digest_of(words_of(first)) == digest_of(words_of(second))


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_other_texts_do_not(first: str, second: str) -> None:
    assert digest_of(words_of(first)) != digest_of(words_of(second))


def test_masked_numbers_are_all_the_same() -> None:
    assert words_of("3 hens, 1,500 eggs", mask_numbers=True) == words_of("12 hens, 2.5 eggs", mask_numbers=True)
    assert words_of("3 hens", mask_numbers=True) != words_of("3 cows", mask_numbers=True)


def test_a_digest_knows_where_words_end() -> None:
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])


def test_runs() -> None:
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams(["a", "b", "c"], 4)) == []


TEST_PROMPT = "A train leaves Paris at 7 and drives 80 km an hour until it reaches Lyon at noon."


@pytest.fixture
def index() -> OverlapIndex:
    made = OverlapIndex(num_words=8)
    made.add("tests", 4, "What is seven times eight?")
    made.add("tests", 5, TEST_PROMPT)
    return made


@pytest.mark.parametrize(
    "text",
    [
        TEST_PROMPT.upper(),
        f"Answer briefly. {TEST_PROMPT} Thank you!",
        "Yesterday a TRAIN leaves\tParis – at 7, and drives quickly.",
        "what is SEVEN  times eight",
    ],
)
def test_a_test_prompt_is_found_in_another_spelling_and_inside_a_longer_text(index: OverlapIndex, text: str) -> None:
    found = index.find(text)
    assert found is not None
    assert (found.name, found.index) == ("tests", 4 if "eight" in text else 5)
    assert found.shared in " ".join(words_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "A train leaves Paris at 7 and stops in Rome.",  # seven words in common
        "A train leaves Paris at 9 and drives 80 km an evening.",  # a number differs
        "What is seven times eight and a half?",  # short test prompts count when they are the whole prompt
        "",
        "?!",
    ],
)
def test_what_only_resembles_a_test_prompt_stays(index: OverlapIndex, text: str) -> None:
    assert index.find(text) is None


def test_renumbered_copies_are_found_when_numbers_are_masked() -> None:
    made = OverlapIndex(num_words=8, mask_numbers=True)
    made.add("tests", 0, TEST_PROMPT)
    assert made.find("A train leaves Paris at 9 and drives 120 km an hour.") is not None


def test_runs_too_short_to_mean_anything_are_refused() -> None:
    with pytest.raises(RecipeError, match="num_words is 1"):
        OverlapIndex(num_words=1)


def test_accents_go_whatever_their_order_and_number() -> None:
    accents = "\u0301\u0323\u0f73\u0345"
    assert words_of(f"e{accents * 5000}te\u0301 \u00e9t\u00e9 \uac01") == words_of("ete ete \u1100\u1161\u11a8")
