"""Small tasks that ship with the package, so that everything can be tried without a download."""

from simct_pl.tasks.arithmetic import ChainGrader, TotalGrader
from simct_pl.tasks.datamodule import ArithmeticDataModule

__all__ = ["ArithmeticDataModule", "ChainGrader", "TotalGrader"]
