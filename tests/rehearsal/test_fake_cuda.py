"""A step on a GPU that is not there: what it counts, what it refuses, and what the loss may ask of a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from simct_pl.rehearsal import fake_cuda

pytestmark = [
    pytest.mark.slow,  # they start processes that import torch and transformers
    pytest.mark.skipif(not fake_cuda.is_possible(), reason="needs g++ and a torch without CUDA of its own"),
]
CASES = "tests.rehearsal.cases"
SOUND = [("TokenConditionalLoss", 1), ("SimCTLoss", 1), ("SimCTLoss", 8)]  # objectives, and how many ranks
# Of one strip of 2,048 tokens in two or three: the paper's pair has 16, and 3,000 for all of them.
KERNELS_OF_A_STRIP = 195


Found = dict[tuple[str, int] | None, dict[str, Any]]
ASKED = [*SOUND, *((name, 1) for name in ("Reading", "Counting", "OnTheHost"))]


@pytest.fixture(scope="module")
def found() -> Found:
    """Of each objective and number of ranks; under None, of single operators."""
    cases = [{"objective": objective, "ranks": ranks} for objective, ranks in ASKED]
    return dict(zip([None, *ASKED], fake_cuda.call(f"{CASES}:everything", cases=cases), strict=True))


def test_sizes_values_and_bytes_of_single_operators(found: Found) -> None:
    assert found[None] == {
        "devices": ["cpu", "cuda", "cuda", "cuda"],
        "places": [2, 1],
        "waits": ["nonzero", "upload"],
        "freed": 4 * 5 * 4,
        "products": [["other", "torch.float32", 4 * 6 * 5]],
    }


@pytest.mark.parametrize("case", SOUND)
def test_the_loss_waits_for_nothing_and_sends_one_parcel_a_chunk(case: tuple[str, int], found: Found) -> None:
    figures = found[case]
    assert figures["forbidden"] == []
    parcels = {line: count for line, count in figures["uploads"].items() if "parcel.py" in line}
    (num_chunks,) = parcels.values()
    assert 3 <= num_chunks <= 4
    assert figures["kernels"]["loss"] < KERNELS_OF_A_STRIP * num_chunks
    # As planned: bf16 products, by autocast or by FSDP2's param_dtype, and a bf16 teacher.
    for phase in ("student_forward", "teacher", "loss"):
        assert figures["products"][phase] == ["torch.bfloat16"]
    assert figures["bytes"]["loss"] > figures["bytes"]["teacher"] > 10**9


def test_a_loss_that_reads_its_own_value_is_refused(found: Found) -> None:
    error = found["Reading", 1]["error"]
    assert "cases.py" in error
    assert "only the device knows" in error


def test_a_wait_that_nothing_allows_is_found(found: Found) -> None:
    (wait,) = found["Counting", 1]["forbidden"]
    assert "cases.py" in wait
    assert ": item, " in wait


def test_a_tensor_on_the_wrong_device_is_refused(found: Found) -> None:
    error = found["OnTheHost", 1]["error"]
    assert "device" in error
    assert "cpu" in error


def test_what_fails_in_there_fails_here() -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        fake_cuda.call(f"{CASES}:nothing")
