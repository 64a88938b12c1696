"""Supervised fine-tuning: what brings a student near its teacher before distillation on its own responses begins.

A teacher and prompts in, a warmed-up student out. `generate` samples the teacher's responses (`response_sampler` asks
an engine, `responses` keeps them on disk), `select` keeps the right and short ones (`response_filters`,
`code_graders`), and `sft` trains on them; `supervised` is its model with the loss behind it, `examples`
what it reads and predicts of a conversation.
"""

from simct_pl.warmup.sft import SFTModule

__all__ = ["SFTModule"]
