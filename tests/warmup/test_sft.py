"""Supervised fine-tuning: the loss by an independent formula, and a fit that learns, exports and loads again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simct_pl.errors import MissingFileError, PromptDataError, RecipeError, TokenizerError
from simct_pl.models.bits_per_byte import Reference
from simct_pl.models.cross_entropy import NO_TARGET
from simct_pl.models.packing import Layout, PackedRow, PaddedRows
from simct_pl.tasks.arithmetic import Problem, TotalGrader
from simct_pl.tasks.datamodule import ArithmeticDataModule
from simct_pl.tasks.tokenizers import STUDENT, TEACHER
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.thinking import Thinking
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import Prompt
from simct_pl.warmup.sft import SFTModule
from simct_pl.warmup.supervised import targets, with_thinking
from tests.tokenization import small

SILENT = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
PROMPTS = [Problem(terms).prompt(i) for i, terms in enumerate([(1, 2), (13, 25, 7), (40, 9, 9, 8)])]


@pytest.fixture(params=[TEACHER, STUDENT], ids=["teacher", "student"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param.save_untrained(tmp_path / "untrained")
    return tmp_path / "untrained"


def module(folder: Path, **options: object) -> SFTModule:
    made = SFTModule(str(folder), from_scratch=True, **options)
    made.configure_model()
    return made


def reference_loss(sft: SFTModule, folder: Path, prompts: list[Prompt], smoothing: float) -> float:
    """One sequence at a time, in float64, with the template rendered as one text and no padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = sft.model.double().eval()
    total, count = 0.0, 0
    for prompt in prompts:
        asked = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        whole = [*prompt.messages, {"role": "assistant", "content": prompt.response}]
        whole_text = tokenizer.apply_chat_template(whole, tokenize=False)
        ids = tokenizer(whole_text, add_special_tokens=False).input_ids
        start = len(tokenizer(asked, add_special_tokens=False).input_ids)
        read_only = {i for a, b in prompt.unsupervised_spans for i in range(len(asked) + a, len(asked) + b)}
        places = tokenizer(whole_text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(start, len(ids)):
            if read_only & set(range(*places[position])):
                continue
            row = logp[position - 1]
            total -= (1 - smoothing) * row[ids[position]].item() + smoothing * row.mean().item()
            count += 1
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_response_and_stop(folder: Path, smoothing: float) -> None:
    sft = module(folder, label_smoothing=smoothing)
    with torch.no_grad():
        for parameter in sft.parameters():  # far from uniform, so that a wrong row or target shows
            parameter.mul_(4)
        found = sft.loss(PROMPTS).item()
        assert found == pytest.approx(reference_loss(sft, folder, PROMPTS, smoothing), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spans", [((0, 1),), ((3, 9), (11, 12)), ((14, 20),), ((29, 30),), ((4, 30),)])
def test_what_a_prompt_names_as_unsupervised_is_read_and_not_predicted(
    folder: Path, spans: tuple[tuple[int, int], ...], smoothing: float
) -> None:
    sft = module(folder, label_smoothing=smoothing)
    prompts = [PROMPTS[0], replace(PROMPTS[1], unsupervised_spans=spans), PROMPTS[2]]
    assert len(PROMPTS[1].response) == 29  # so that (29, 30) is the stop
    with torch.no_grad():
        for parameter in sft.parameters():
            parameter.mul_(4)
        found = sft.loss(prompts).item()
        assert found == pytest.approx(reference_loss(sft, folder, prompts, smoothing), rel=1e-4)
        assert found != pytest.approx(sft.loss(PROMPTS).item(), rel=1e-3)


def test_spans_are_bytes_of_the_response_without_a_dummy_prefix() -> None:
    tokenizer = ModelTokenizer(small.sentencepiece_bpe())
    prompt = Prompt(0, (), response="é 38")
    ids = tokenizer.encode(prompt.response)
    assert tokenizer.table[ids[0]].startswith(b" ")
    # The 3, behind the two bytes of é and a space.
    named = targets(replace(prompt, unsupervised_spans=((3, 4),)), ids, tokenizer)
    assert [tokenizer.table[i] for i, target in zip(ids, named, strict=False) if target == NO_TARGET] == [b"3"]


@pytest.mark.parametrize("span", [(-1, 2), (3, 3), (4, 2), (5, 31)])
def test_spans_outside_of_the_response_are_refused(folder: Path, span: tuple[int, int]) -> None:
    prompt = replace(PROMPTS[1], unsupervised_spans=(span,))
    with pytest.raises(PromptDataError, match=r"Prompt 1 has unsupervised_spans .*<= 30"):
        module(folder).loss([prompt])


@pytest.mark.parametrize("choice", ["supervised", "skipped", "left_out"])
def test_thinking_is_supervised_skipped_or_left_out(folder: Path, choice: Thinking) -> None:
    """Against prompts that say by themselves what is read and what is there at all."""
    plain, sft = module(folder), module(folder, thinking=choice)
    answer, thought = PROMPTS[1].response or "", "<think>38 é</think>\n"
    prompt = replace(PROMPTS[1], response=thought + answer)
    spelt = {
        "supervised": prompt,
        "skipped": replace(prompt, unsupervised_spans=((0, len(thought.encode())),)),
        "left_out": PROMPTS[1],
    }
    found = sft.loss([PROMPTS[0], prompt]).item()
    assert found == pytest.approx(plain.loss([PROMPTS[0], spelt[choice]]).item(), rel=1e-6)
    others = [plain.loss([PROMPTS[0], other]).item() for name, other in spelt.items() if name != choice]
    assert all(abs(found - other) > 1e-4 for other in others)


def test_thinking_keeps_the_spans_of_the_answer_and_may_be_opened_by_the_prompt() -> None:
    prompt = Prompt(0, (), response="é</think>\n12+3", unsupervised_spans=((0, 2), (12, 14), (15, 16)))
    assert with_thinking(prompt, "left_out") == prompt, "nothing has opened it"
    left = with_thinking(prompt, "left_out", is_open=True)
    assert (left.response, left.unsupervised_spans) == ("12+3", ((1, 3), (4, 5)))
    with pytest.raises(PromptDataError, match="prompt 0 is all thinking; with thinking=skipped"):
        with_thinking(replace(prompt, response="<think>12"), "skipped")


def test_arguments_of_the_template_are_the_models(folder: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if short %}{{ '=' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    sft, short = (module(folder, template=values) for values in (None, {"short": True}))
    ids = [m.examples(PROMPTS[:1])[0].prompt_ids for m in (sft, short)]
    assert ids[1] == [*ids[0], *sft.tokenizer.encode("=")]
    with pytest.raises(TokenizerError, match="does not use the argument 'long'; it has short"):
        module(folder, template={"long": True}).setup("fit")


def test_messages_that_the_template_refuses_are_refused_before_weights_load(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('not like this') }}")
    sft = SFTModule(str(folder), from_scratch=True)
    with pytest.raises(TokenizerError, match=r"untrained refuses messages with the roles \['user'\]: not like this"):
        L.Trainer(max_steps=1, **SILENT).fit(sft, datamodule=ArithmeticDataModule(batch_size=4, num_train_batches=2))
    assert sft.supervised is None


@pytest.mark.parametrize("layout", [PackedRow(), PaddedRows()], ids=["packed", "padded"])
@pytest.mark.parametrize(("micro_batch_tokens", "chunk_tokens"), [(1, 3), (40, 1024), (10_000, 7)])
def test_neither_layout_nor_cuts_change_the_loss(
    folder: Path, layout: Layout, micro_batch_tokens: int, chunk_tokens: int
) -> None:
    sft = module(folder, layout=layout, micro_batch_tokens=micro_batch_tokens, chunk_tokens=chunk_tokens)
    sft.model.double()
    with torch.no_grad():
        for parameter in sft.parameters():
            parameter.mul_(4)
    found = sft.loss(PROMPTS)
    found.backward()
    assert found.item() == pytest.approx(reference_loss(sft, folder, PROMPTS, smoothing=0.0), rel=1e-7)
    plain = module(folder)
    plain.model.load_state_dict(sft.model.state_dict())
    plain.model.double()
    plain.loss(PROMPTS).backward()
    for ours, theirs in zip(sft.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_a_step_is_that_of_adamw_on_the_mean_over_the_batch(folder: Path, tmp_path: Path) -> None:
    """Packed micro-batches in the real loop, against one plain step on the reference loss."""
    options = {"optimizer": OptimizerConfig(lr=1e-3, warmup_ratio=0.0, max_grad_norm=0.5)}
    sft = SFTModule(str(folder), from_scratch=True, layout=PackedRow(), micro_batch_tokens=30, **options)
    data = ArithmeticDataModule(batch_size=3, num_train_batches=1, num_val_prompts=2)
    L.Trainer(max_steps=1, default_root_dir=tmp_path, limit_val_batches=0, **SILENT).fit(sft, data)
    plain = module(folder)
    (batch,) = ArithmeticDataModule(batch_size=3, num_train_batches=1).train_dataloader()
    plain.loss(batch.prompts).backward()
    torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
    torch.optim.AdamW(plain.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0).step()
    before = module(folder).model
    weights = zip(sft.model.parameters(), plain.model.parameters(), before.parameters(), strict=True)
    for ours, theirs, untrained in weights:  # AdamW's first step is lr * sign(g): rounding near zero may turn one over
        moved = (theirs - untrained).norm()
        assert moved > 0
        assert (ours - theirs).norm() < 0.01 * moved


def test_held_out_loss_and_bits_are_means_over_tokens_and_bytes(folder: Path, tmp_path: Path) -> None:
    sft = module(folder)
    data = ArithmeticDataModule(batch_size=4, num_val_prompts=5, val_batch_size=3)
    (metrics,) = L.Trainer(default_root_dir=tmp_path, **SILENT).validate(sft, data, verbose=False)
    prompts = data.held_out_prompts()
    assert metrics["eval/loss"] == pytest.approx(reference_loss(sft, folder, prompts, smoothing=0.0), rel=1e-4)
    bits = sum(sft.supervised.bits([Reference(e.prompt_ids, e.response_ids[:-1])]) for e in sft.examples(prompts))
    num_bytes = sum(len(prompt.response.encode()) for prompt in prompts)
    assert metrics["eval/bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-4)
    assert "eval/accuracy" not in metrics


def test_an_example_longer_than_the_context_is_refused(folder: Path) -> None:
    prompt = Prompt(3, ({"role": "user", "content": "1+2?"},), response="1" * 5000)
    with pytest.raises(PromptDataError, match=r"Prompt 3 has \d+ tokens with its response"):
        module(folder).loss([prompt])


def test_the_same_seed_initialises_the_same_weights_and_leaves_the_global_stream_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = (module(folder, init_seed=seed).model.lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_fit_learns_and_exports_a_folder_that_loads(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained"
    sft = SFTModule(
        str(folder), str(output), from_scratch=True, optimizer=OptimizerConfig(lr=3e-3), grader=TotalGrader()
    )
    data = ArithmeticDataModule(batch_size=16, num_train_batches=12, num_val_prompts=8, num_problems=4)
    trainer = L.Trainer(max_epochs=1, **SILENT)
    trainer.fit(sft, data)
    assert trainer.callback_metrics["loss/train"] < 4.5  # 5.6 at the start: log of the vocabulary's size
    assert 0 <= trainer.callback_metrics["eval/accuracy"] <= 1

    again = AutoModelForCausalLM.from_pretrained(output)
    for name, weight in sft.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert (output / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert again.generation_config.eos_token_id == AutoTokenizer.from_pretrained(output).eos_token_id
    continued = SFTModule(str(output))
    continued.setup("fit")
    continued.configure_model()
    assert torch.equal(continued.model.lm_head.weight, again.lm_head.weight)


def test_a_prompt_without_a_response_is_refused(folder: Path) -> None:
    prompt = Prompt(17, ({"role": "user", "content": "1+2?"},))
    with pytest.raises(PromptDataError, match="Prompt 17 has no response"):
        module(folder).loss([prompt])


def test_a_folder_that_does_not_exist_is_refused_before_anything_loads() -> None:
    with pytest.raises(MissingFileError, match=r"\./nowhere"):
        SFTModule("./nowhere").setup("fit")


def test_label_smoothing_out_of_range_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"label_smoothing is 1\.0"):
        SFTModule(str(folder), label_smoothing=1.0)
