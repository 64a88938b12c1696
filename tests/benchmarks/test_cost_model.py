"""The cost model against torch's own counts, and the arithmetic that a reader would check by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from benchmarks import cost_checks, cost_loss_checks, layouts, scaling
from benchmarks.architectures import published_configs
from benchmarks.tracers import LiveBytes, TrafficCounter
from simct_pl.planning.cost_inputs import Efficiency, HardwareShape, LossShape, StepShape
from simct_pl.planning.cost_model import CostModel
from simct_pl.planning.shapes import ModelShape


@pytest.fixture
def cost() -> CostModel:
    shapes = {name: ModelShape.from_config(config) for name, config in published_configs().items()}
    return CostModel(shapes["Gemma-2-2B-it"], shapes["Qwen2.5-7B-Instruct"])


# ---- against the models ----


def test_parameters_are_those_of_the_models() -> None:
    checks = cost_checks.parameter_checks()
    assert [check.predicted for check in checks] == [check.measured for check in checks]
    counts = {check.case: round(check.predicted / 1e9, 2) for check in checks}
    assert counts["Qwen2.5-7B-Instruct"] == 7.62
    assert counts["Gemma-2-2B-it"] == 2.61


def test_flops_are_those_that_torch_counts() -> None:
    checks = cost_checks.flop_checks()
    assert len(checks) == 8
    assert [check.predicted for check in checks] == [check.measured for check in checks]


def test_activations_are_those_that_autograd_keeps() -> None:
    """Phi-3 keeps about a tenth more: views hold on to its fused projections as a whole."""
    checks = cost_checks.activation_checks()
    assert len(checks) == 12
    for check in checks:
        assert check.ratio == pytest.approx(1, abs=0.13 if "Phi-3" in check.case else 0.02), check


def test_traffic_of_the_layers_is_as_counted() -> None:
    for check in cost_checks.body_traffic_checks():
        assert check.ratio == pytest.approx(1, abs=0.15), check


def test_an_unknown_architecture_or_option_is_refused() -> None:
    with pytest.raises(ValueError, match="gpt2"):
        ModelShape.from_config(GPT2Config())
    with pytest.raises(ValueError, match="attention_bias"):
        ModelShape.from_config(LlamaConfig(attention_bias=True))


@pytest.mark.parametrize(("length", "window"), [(1, 4), (4, 4), (9, 4), (5, 1)])
def test_attention_counts_every_pair_that_the_mask_leaves(length: int, window: int) -> None:
    shape = ModelShape(3, 8, 8, 2, 1, 4, 10, tied=True, num_sliding_layers=1, window=window)
    full = sum(key <= query for query in range(length) for key in range(length))
    sliding = sum(query - window < key <= query for query in range(length) for key in range(length))
    assert shape.attention_flops(length) == 4 * 8 * (2 * full + sliding)
    assert shape.kv_bytes(length, 2) == 2 * 4 * 2 * (2 * length + min(length, window))


# ---- against the loss ----


def test_traffic_of_the_loss_is_as_counted() -> None:
    assert cost_loss_checks.traffic_check(64, 640, 380).ratio == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize(
    ("num_tokens", "chunk_tokens", "dense"), [(256, 64, False), (256, 256, False), (256, 64, True)]
)
def test_tensors_of_the_loss_are_as_many_as_predicted(num_tokens: int, chunk_tokens: int, dense: bool) -> None:
    check = cost_loss_checks.alive_check(num_tokens, chunk_tokens, dense=dense, vocabs=(16_000, 9_500))
    assert check.ratio == pytest.approx(1, abs=0.3), check


def test_chunked_logits_are_flat_in_length_and_dense_ones_are_not(cost: CostModel) -> None:
    longer = replace(cost, step=replace(cost.step, response_tokens=8192, teacher_response_tokens=8064))
    assert cost.step.micro_batch * 4096 == 3 * longer.step.micro_batch * 4096  # 3 short responses or 1 long one
    states = (8192 - 3 * 4096) * cost.student.width * cost.step.compute_bytes
    assert longer.loss_bytes(dense=False) - cost.loss_bytes(dense=False) == states
    alone = replace(cost, step=replace(cost.step, micro_batch_tokens=1))
    assert longer.loss_bytes(dense=True) / alone.loss_bytes(dense=True) == pytest.approx(2, rel=0.05)


# ---- by hand ----


def test_a_token_is_decoded_in_the_time_that_its_weights_and_cache_are_read() -> None:
    shape = ModelShape(2, 8, 16, 2, 1, 4, 100, tied=True)
    step = StepShape(4, 1, prompt_tokens=3, response_tokens=2, teacher_response_tokens=2, num_gpus=2)
    hardware = HardwareShape(flops=1e30, memory_bandwidth=100.0)
    decode = CostModel(shape, shape, step, hardware=hardware, efficiency=Efficiency(decode=0.5)).decode()
    weights = 2 * 2 * shape.parameters  # two steps, two bytes each
    cache = 2 * (3 + 4) * 2 * 2 * 4 * 2  # responses, tokens so far, layers, keys and values, width, bytes
    assert decode.bytes == weights + cache
    assert decode.seconds == pytest.approx((weights + cache) / 50)


def test_training_costs_six_flops_a_weight_and_token() -> None:
    """Of a step without attention worth mentioning, at one token a response."""
    shape = ModelShape(2, 64, 256, 2, 2, 32, 1000, tied=False)
    step = StepShape(1, 1, 0, 1, 1, checkpointing=False, num_gpus=1, student="replicated")
    cost = CostModel(shape, shape, step)
    trained = cost.student_forward().flops + cost.student_backward().flops + cost.head_products().flops
    without_teacher = trained - 2 * shape.head_parameters
    matrices = shape.num_layers * shape.layer_matrices + shape.head_parameters
    assert without_teacher == pytest.approx(6 * matrices, rel=0.02)


def test_sharding_divides_what_it_shards_and_nothing_else(cost: CostModel) -> None:
    replicated = replace(cost, step=replace(cost.step, student="replicated"))
    pairs = zip(cost.memory(), replicated.memory(), strict=True)
    ratios = {one.name: one.bytes / other.bytes for one, other in pairs if one.bytes != other.bytes}
    assert ratios.pop("student weights for products") < 1
    assert ratios == {"student weights": 1 / 8, "gradients": 1 / 8, "AdamW moments": 1 / 8}
    assert cost.optimizer().seconds == pytest.approx(replicated.optimizer().seconds / 8)


def test_a_sharded_teacher_keeps_what_is_outside_its_layers_whole(cost: CostModel) -> None:
    sharded = replace(cost, step=replace(cost.step, teacher="sharded"))
    (found,) = (item.bytes for item in sharded.memory() if item.name == "teacher weights")
    outside = 2 * 152_064 * 3584 + 3584  # embeddings, head, last norm
    assert found == 2 * (outside + (cost.teacher.parameters - outside) / 8)


def test_a_copy_on_each_node_sends_only_gradients_across(cost: CostModel) -> None:
    """16 GPUs; rings of 8 over NVLink, rings of 2 over the network, and one ring of 16 that is all network."""
    two_nodes = replace(cost, step=replace(cost.step, num_gpus=16))
    copies = replace(two_nodes, step=replace(two_nodes.step, num_replicas=2))
    parameters, groups = cost.student.parameters, two_nodes.step.num_micro_batches
    moved = groups * (2 * 2 + 4) * parameters  # two gathers in bf16, fp32 gradients
    assert two_nodes.sync().seconds == pytest.approx(moved * 15 / 16 / (0.7 * 50e9))
    across = groups * 2 * 1 / 2 * 4 * parameters / 8
    assert copies.sync().seconds == pytest.approx(moved * 7 / 8 / (0.7 * 450e9) + across / (0.7 * 50e9))
    assert copies.sync().link_bytes == pytest.approx(moved * 7 / 8 + across)


def test_layouts_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    layouts.main()
    printed = capsys.readouterr().out
    for num_gpus, named in layouts.LAYOUTS.items():
        for name in named:
            assert printed.count(f"| {num_gpus}: {name} |") == len(layouts.PAIRS)
    assert "predicted" in printed
    assert all(f"| {pair} |" in printed for pair in layouts.PAPER_PAIRS)


def test_a_server_takes_the_engine_off_the_training_gpus(cost: CostModel) -> None:
    served = replace(cost, step=replace(cost.step, engine="server"))
    without = {item.name: item.bytes for item in served.memory()}
    assert without["engine weights"] == without["engine KV cache"] == 0
    shared = replace(cost, step=replace(cost.step, engine="student"))
    held = {item.name: item.bytes for item in shared.memory()}
    assert held["engine weights"] == 0
    assert held["engine KV cache"] == {item.name: item.bytes for item in cost.memory()}["engine KV cache"]


def test_the_longest_response_is_the_last_that_fits(cost: CostModel) -> None:
    tight = replace(cost, hardware=replace(cost.hardware, memory=50e9))
    tokens = scaling.longest_response(tight, dense=True)
    for length, fits in ((tokens, True), (tokens + 1, False)):
        step = replace(tight.step, response_tokens=length, teacher_response_tokens=round(length * 4032 / 4096))
        assert (replace(tight, step=step).peak_bytes(dense=True) <= 50e9) == fits


# ---- the instruments, and the page ----


def test_the_tracers_count_bytes() -> None:
    values = torch.ones(1000)  # 4,000 bytes
    with TrafficCounter() as traffic, LiveBytes() as alive:
        total = values.view(10, 100).add(1).exp_()
        copy = total + total
        del total
        copy.sum()
    assert traffic.bytes == (4000 + 4000) + (4000 + 4000) + (4000 + 4000 + 4000) + (4000 + 4)
    assert alive.most == 8000
    assert alive.live == 4000


def test_scaling_prints_its_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "checks", cost_checks.parameter_checks)
    scaling.main(loss=LossShape(chunk_tokens=512))
    printed = capsys.readouterr().out
    assert "no GPU was used" in printed
    for word in ("rollout: decode", "student activations", "teacher sharded too", "7,615,616,512"):
        assert word in printed
