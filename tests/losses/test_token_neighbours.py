"""What is looked up about a token's neighbours, against the tokenizers themselves: two BPEs, trained here."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.neighbours import UNREAD, Side, opposite
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.readings import Reader

ROOT = Path(__file__).resolve().parents[2]
every_side = pytest.mark.parametrize("side", get_args(Side))


def trained(folder: Path, texts: list[str], size: int) -> Reader:
    """A byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return Reader.of(ModelTokenizer.from_pretrained(str(folder)))


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Asker:
    """The student learnt the project's code, the teacher its pages."""
    code, pages = ([p.read_text() for p in sorted(ROOT.glob(of))] for of in ("simct_pl/losses/*.py", "docs/*.md"))
    student = trained(tmp_path_factory.mktemp("student"), code, 1500)
    teacher = trained(tmp_path_factory.mktemp("teacher"), pages, 2500)
    return Asker(VocabLinks.build(student, teacher, cached=False))


@every_side
def test_longer_tokens_to_ask_about_are_those_that_merges_do_not_tell(asker: Asker, side: Side) -> None:
    """Counted by position, or one by one."""
    other, own = asker.tokens[opposite(side)], asker.tokens[side]
    rng, left_out = random.Random(0), 0
    for last in [None, *rng.sample(own.reader.text_ids, 60)]:
        for data in [b"", b" ", *(token[:2] for token in rng.sample(other.tokens, 20))]:
            longer = np.array([k for k, token in other.beginning_with(data) if len(token) > len(data)], np.int64)
            expected = asker._to_ask(side, last, longer)
            assert sorted(asker._longer_to_ask(side, last, data).tolist()) == sorted(expected.tolist())
            left_out += len(longer) - len(expected)
    assert left_out > 1000


@every_side
@pytest.mark.parametrize("followed", [False, True])
def test_what_a_side_begins_with_is_what_it_reads_whenever_it_is_asked(
    asker: Asker, side: Side, followed: bool
) -> None:
    reader, tokens = asker.tokens[side].reader, asker.tokens[opposite(side)].reader.table.tokens
    rng = random.Random(1)
    for _ in range(30):
        front = reader.table.tokens[rng.choice(reader.text_ids)]
        for _ in range(2):  # some tokens are asked about twice
            asked = rng.sample(asker.tokens[opposite(side)].reader.text_ids, 400)
            found = asker._firsts_behind(side, front, asked, followed=followed)
            for token in asked[:20]:
                behind = asker._surviving(opposite(side), token) if followed else (b"",)
                read = reader.read([front + tokens[token] + after for after in behind])
                assert found[token] == tuple(ids[0] if ids else UNREAD for ids in read)


@every_side
def test_a_token_is_kept_with_what_is_left_out_only_if_it_would_be_written_there(asker: Asker, side: Side) -> None:
    reader, others = asker.tokens[side].reader, tuple(asker.tokens[opposite(side)].reader.text_ids)
    rng, count = random.Random(2), 0
    for last in rng.sample(reader.text_ids, 60):
        tokens = reader.table.tokens
        kept = asker._partly(side, last, others)
        for ids in reader.read([tokens[last] + tokens[k] for k in kept]):
            assert ids is None or ids[0] == last
            count += 1
    assert count > 100
