"""Supervised fine-tuning: what brings a student near its teacher before distillation on its own responses begins."""

from simct_pl.warmup.sft import SFTModule

__all__ = ["SFTModule"]
