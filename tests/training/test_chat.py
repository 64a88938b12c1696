"""What a reasoning student's responses teach, against the same responses scored whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from callbacks import PolicyMismatch
from simct_pl import TokenConditionalLoss
from simct_pl.errors import RecipeError, TokenizerError
from simct_pl.tokenization import thinking
from simct_pl.training.chat import ChatSettings
from simct_pl.types import STUDENT_START, PromptBatch, Rollout
from tests.tiny import data, distill_module, sampled, trainer, unloaded_module


def thoughtful(module, answers: tuple[str, ...] = ("1+2= 3", "3+3= 6", "9")) -> list[Rollout]:  # type: ignore[no-untyped-def]
    """Sampled responses behind a thought, without one, and one that never ends."""
    student = module.pair.student
    texts = [f"<think>{text}?</think>\n" for text in answers[:-1]]
    thoughts = [*(student.encode(text) for text in texts), []]
    found = []
    for rollout, thought in zip(sampled(module, 3), thoughts, strict=True):
        ids = [*thought, *rollout.response_ids]
        found.append(
            replace(rollout, response_ids=ids, engine_logprobs=[*([0.0] * len(thought)), *rollout.engine_logprobs])
        )
    endless = [*student.encode("<think>1+2"), student.stop_ids[0]]
    last = replace(found[0], response_ids=endless, engine_logprobs=[0.0] * len(endless), finish_reason="stop")
    return [*found, last]


@pytest.mark.parametrize("path", [False, True], ids=["units", "token paths"])
def test_thinking_that_is_skipped_is_read_and_not_learned(path: bool) -> None:
    objective = {"objective": TokenConditionalLoss()} if path else {}
    module = distill_module(chat=ChatSettings(thinking="skipped"), **objective)
    module.objective.prepare(module.pair)
    rollouts = thoughtful(module)
    learned = module.chat.supervised_part(module.pair, rollouts)
    assert [r.response_ids for r in learned] == [r.response_ids for r in rollouts], "both models read all of it"
    nums = [rollout.num_unsupervised for rollout in learned]
    assert 0 < nums[0] < len(learned[0].response_ids)
    assert nums[2:] == [0, len(rollouts[3].response_ids)]
    whole = module.align(rollouts)
    _, stats = module.loss_sum(rollouts, whole)
    expected = 0.0
    for num, alignment, own in zip(nums, whole.alignments, whole.split(stats), strict=True):
        behind_U = torch.from_numpy(alignment.units_U6[alignment.supervised_U][:, STUDENT_START] >= num)
        expected += own.loss_U[behind_U].sum().item()
    part = module.align(learned)
    loss, _ = module.loss_sum(learned, part)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert part.only.teacher_response_ids == whole.only.teacher_response_ids
    assert not part.alignments[3].supervised_U.any()


def test_thinking_that_is_left_out_is_the_students_alone() -> None:
    module = distill_module(chat=ChatSettings(thinking="left_out"))
    rollouts = thoughtful(module)
    learned = module.chat.supervised_part(module.pair, rollouts)
    for before, after in zip(rollouts, learned, strict=True):
        assert [*after.prompt_ids, *after.response_ids] == [*before.prompt_ids, *before.response_ids]
        assert len(after.engine_logprobs) == len(after.response_ids)
    assert [len(r.response_ids) for r in learned[2:]] == [len(rollouts[2].response_ids), 0]
    assert not learned[3].stopped, "its stop ended a thought, and no answer"
    aligned = module.align(learned)
    answer = module.pair.student.response_bytes(learned[0].response_ids)
    assert b"think" not in aligned.alignments[0].text
    assert aligned.alignments[0].text == answer
    # What the student says of its answer is what it says of it behind the thought.
    _, stats = module.loss_sum(learned, aligned)
    found_N = aligned.split(stats)[0].token_logprobs_N
    ids = [*rollouts[0].prompt_ids, *rollouts[0].response_ids]
    with torch.no_grad():
        logp = module.student(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(ids) - len(learned[0].response_ids), len(ids))
    expected_N = torch.stack([logp[i - 1, ids[i]] for i in places])
    torch.testing.assert_close(found_N, expected_N, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", ["supervised", "skipped", "left_out"])
def test_a_fit_learns_from_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: thinking.Thinking
) -> None:
    """The embedded student's first sum stands for its thinking; what engine and trainer say stays equal."""
    monkeypatch.setattr(thinking, "OPEN", b"")
    monkeypatch.setattr(thinking, "CLOSE", b",")
    shares, batches = [], []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch: PromptBatch, batch_idx):  # type: ignore[no-untyped-def]
            batches.append(batch)
            shares.append(trainer.callback_metrics.get("rollout/supervised_share"))
            assert float(trainer.callback_metrics["policy/mismatch_p99"]) < 1e-4

    module = distill_module(chat=ChatSettings(thinking=choice))
    fitted = trainer(tmp_path, PolicyMismatch(), Keep())
    fitted.fit(module, datamodule=data())
    if choice == "supervised":
        assert shares == [None, None]
        return
    assert all(0 < float(share) < 1 for share in shares)
    for batch in batches:
        assert batch.record.num_global_tokens == sum(r.num_targets for r in batch.record.rollouts)
        sampled_tokens = sum(len(rollout.response_ids) for rollout in batch.rollouts)
        assert 0 < batch.record.num_global_tokens < sampled_tokens
    fitted.validate(module, datamodule=data(), verbose=False)
    assert fitted.callback_metrics["eval/loss"].isfinite()


def test_without_thinking_every_choice_is_the_same_loss() -> None:
    module = distill_module()
    rollouts = sampled(module)
    for choice in thinking.CHOICES:
        assert ChatSettings(thinking=choice).supervised_part(module.pair, rollouts) == rollouts


def test_other_choices_and_arguments_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"thinking is 'skiped'; expected one of .* Did you mean 'skipped'"):
        ChatSettings(thinking="skiped")  # type: ignore[arg-type]
    module = unloaded_module(chat=ChatSettings(teacher={"enable_thinking": False}))
    with pytest.raises(TokenizerError, match=r"quickstart/teacher does not use the argument 'enable_thinking'"):
        module.setup("fit")
