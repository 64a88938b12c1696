"""Rehearsals that tests run where "cuda" is fake (simct_pl.rehearsal.fake_cuda.call), in one process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from typing_extensions import override

from benchmarks.rehearse import Case, Figures, ledger_of
from simct_pl.errors import UnsupportedModelError
from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.losses.simct import SimCTLoss
from simct_pl.rehearsal.device import FakeDevice

SMALL = {"student": "Gemma-2-2B-it", "teacher": "Qwen2.5-7B-Instruct", "layers": 1, "responses": 2, "tokens": 1024}


class Reading(SimCTLoss):
    """Looks at its own loss."""

    @override
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        losses = super().__call__(chunk)
        assert losses.loss_U.sum().item() >= 0
        return losses


class Counting(SimCTLoss):
    """Asks the device for what the host knows."""

    @override
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        assert chunk.rows.column_U.max().item() >= 0
        return super().__call__(chunk)


class OnTheHost(SimCTLoss):
    """Adds a tensor of the host to one of the device."""

    @override
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        losses = super().__call__(chunk)
        return UnitLosses.over_everything(losses.loss_U + torch.ones(len(losses.loss_U)), losses.supervised_U)


def everything(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `instrument` says, and the `figures` of each case: a process of its own for each would import for longer."""
    return [instrument(), *(figures(**case) for case in cases)]


def figures(objective: str | None = None, **case: Any) -> dict[str, Any]:
    """Of a small case. objective: SimCTLoss, TokenConditionalLoss, or a class of this module."""
    given = {"Reading": Reading, "Counting": Counting, "OnTheHost": OnTheHost}
    named = {} if objective in (None, *given) else {"objective": objective}
    try:
        return asdict(
            Figures.of(
                ledger_of(
                    Case(**{**SMALL, **case, **named}),  # type: ignore[arg-type]
                    "cuda",
                    given[objective]("sum_logprob", "marginal") if objective in given else None,
                )
            )
        )
    except (UnsupportedModelError, RuntimeError) as error:
        return {"error": str(error)}


def instrument() -> dict[str, Any]:
    """What the mode says of single operators."""
    mode = FakeDevice("cuda")
    with mode:
        host = torch.arange(6)
        sent = host.to("cuda")
        places = (sent > 3).nonzero()
        floats = torch.zeros(4, 5, device="cuda")
        kept = floats @ torch.ones(5, 6, device="cuda")
        most = mode.ledger.live
        del floats
        mode.ledger.here()
    return {
        "devices": [str(one.device.type) for one in (host, sent, places, kept)],
        "places": list(places.shape),
        "waits": sorted(wait.kind for wait in mode.ledger.waits),
        "freed": most - mode.ledger.live,
        "products": [[phase, str(dtype), amount] for (phase, dtype), amount in mode.ledger.products.items()],
    }
