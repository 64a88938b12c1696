"""Small tasks that ship with the package, so that everything can be tried without a download.

`arithmetic` has the problems, what a right response is, and the graders; `datamodule` makes batches of prompts of
them, `benchmark` a benchmark of those that nothing was trained on; `tokenizers` makes two tokenizers that cut the task
differently, and untrained models around them.
"""

from simct_pl.tasks.arithmetic import ChainGrader, TotalGrader
from simct_pl.tasks.datamodule import ArithmeticDataModule

__all__ = ["ArithmeticDataModule", "ChainGrader", "TotalGrader"]
