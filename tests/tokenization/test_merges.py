"""What merges tell about a cut, against the tokenizers themselves."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from simct_pl.preflight.listed_tokenizer import cut_down
from simct_pl.tokenization.merges import Merges
from simct_pl.tokenization.readings import Reader
from tests.tokenization.real import real_tokenizer


@pytest.mark.parametrize("name", ["smollm2", "deepseek", "qwen", "mistral"])
def test_tokens_that_are_said_to_join_are_read_otherwise_and_others_as_they_stand(name: str) -> None:
    """Other pairs than those by which the kinds of characters were tried."""
    reader = Reader.of(real_tokenizer(name))
    joints = reader.joints
    if joints is None:
        pytest.skip("its definition has no merges")
    rng, tokens = random.Random(1), reader.table.tokens
    ids = np.array(reader.text_ids)
    own = reader.read([tokens[k] for k in reader.text_ids])
    alone = np.array([k for k, found in zip(reader.text_ids, own, strict=True) if found == [k]])
    counts, wrong = [0, 0], []
    for last in rng.sample(alone[joints.last_K[alone] >= 0].tolist(), 120):
        joining = np.intersect1d(joints.joining(last), alone)
        behind = np.array([*rng.sample(alone.tolist(), 60), *rng.sample(joining.tolist(), min(30, len(joining)))])
        known = joints.known(last, behind)
        read = reader.read([tokens[last] + tokens[k] for k in behind.tolist()])
        for joins, (is_known, found_E) in enumerate(zip((True, False), known, strict=True)):
            for k in np.flatnonzero(found_E).tolist():
                counts[joins] += 1
                found = read[k]
                cut = found is None or found[0] == last
                if cut == is_known:
                    wrong.append((tokens[last], tokens[behind[k]], is_known))
    assert min(counts) > 200, counts
    assert len(wrong) <= 0.001 * sum(counts), wrong[:10]
    assert len(ids) > 10_000


def test_a_tokenizer_with_fewer_tokens_joins_what_the_whole_one_joins() -> None:
    whole = real_tokenizer("smollm2")
    (small,) = cut_down([whole], ["See [x](y) and `a_b` or 12 + 3.", "<br/>.\n\nThe end"])
    found, known = Reader.of(small).joints, Reader.of(whole).joints
    assert found is not None
    assert known is not None
    id_of = {token: k for k, token in enumerate(whole.table.tokens) if whole.table.is_text_V[k]}
    kept = np.array([id_of.get(token, -1) for token in small.table.tokens])
    ids = np.flatnonzero(kept >= 0)
    counts = np.zeros(2, int)
    for last in ids.tolist():
        for own, others in zip(found.known(last, ids), known.known(int(kept[last]), kept[ids]), strict=True):
            np.testing.assert_array_equal(own, others)
        counts += [len(found.joining(last)), len(known.joining(int(kept[last])))]
    assert 0 < counts[0] < counts[1]
    assert found.last_K[-1] == found.first_K[-1] == -1  # what stands for all other tokens


def test_merges_of_a_small_tokenizer_by_hand() -> None:
    """Of `a b c`: `b c` comes before `a b`, so that `a` keeps apart from `bc`, and joins a `b` that stands alone."""
    vocab = {text: k for k, text in enumerate(["a", "b", "c", "bc", "ab", "abb"])}
    model = {"type": "BPE", "vocab": vocab, "merges": [["b", "c"], ["a", "b"], ["ab", "b"]]}
    merges = Merges.of(json.dumps({"model": model}), len(vocab))
    assert merges is not None
    assert merges.joining(vocab["a"]).tolist() == [vocab["b"]]
    assert merges.joining(vocab["ab"]).tolist() == [vocab["b"], vocab["c"]]
    assert merges.joining(vocab["c"]).tolist() == []
    assert Merges.of(json.dumps({"model": {**model, "type": "Unigram"}}), len(vocab)) is None
