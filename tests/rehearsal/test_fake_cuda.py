"""A step on a GPU that is not there: what it counts, what it refuses, and what the loss may ask of a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from simct_pl.rehearsal import fake_cuda

pytestmark = [
    pytest.mark.slow,  # each starts a process that imports torch and transformers
    pytest.mark.skipif(not fake_cuda.is_possible(), reason="needs g++ and a torch without CUDA of its own"),
]
CASES = "tests.rehearsal.cases"
# Of one strip of 2,048 tokens in two or three: the paper's pair has 16, and 3,000 for all of them.
KERNELS_OF_A_STRIP = 195


def figures(**case: Any) -> dict[str, Any]:
    found: dict[str, Any] = fake_cuda.call(f"{CASES}:figures", **case)
    return found


def test_sizes_values_and_bytes_of_single_operators() -> None:
    found = fake_cuda.call(f"{CASES}:instrument")
    assert found == {
        "devices": ["cpu", "cuda", "cuda", "cuda"],
        "places": [2, 1],
        "waits": ["nonzero", "upload"],
        "freed": 4 * 5 * 4,
        "products": [["other", "torch.float32", 4 * 6 * 5]],
    }


@pytest.mark.parametrize(("objective", "ranks"), [("TokenConditionalLoss", 1), ("SimCTLoss", 1), ("SimCTLoss", 8)])
def test_the_loss_waits_for_nothing_and_sends_one_parcel_a_chunk(objective: str, ranks: int) -> None:
    found = figures(objective=objective, ranks=ranks)
    assert found["forbidden"] == []
    parcels = {line: count for line, count in found["uploads"].items() if "parcel.py" in line}
    (num_chunks,) = parcels.values()
    assert 3 <= num_chunks <= 4
    assert found["kernels"]["loss"] < KERNELS_OF_A_STRIP * num_chunks
    # As planned: bf16 products, by autocast or by FSDP2's param_dtype, and a bf16 teacher.
    for phase in ("student_forward", "teacher", "loss"):
        assert found["products"][phase] == ["torch.bfloat16"]
    assert found["bytes"]["loss"] > found["bytes"]["teacher"] > 10**9


def test_a_loss_that_reads_its_own_value_is_refused() -> None:
    error = figures(objective="Reading")["error"]
    assert "cases.py" in error
    assert "only the device knows" in error


def test_a_wait_that_nothing_allows_is_found() -> None:
    (found,) = figures(objective="Counting")["forbidden"]
    assert "cases.py" in found
    assert ": item, " in found


def test_a_tensor_on_the_wrong_device_is_refused() -> None:
    error = figures(objective="OnTheHost")["error"]
    assert "device" in error
    assert "cpu" in error


def test_what_fails_in_there_fails_here() -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        fake_cuda.call(f"{CASES}:nothing")
