"""Runs code that nobody has read. In: a model's code, and tests or an input. Out: a verdict, or what was printed.

`sandbox` is the door: Sandbox with its limits. `bwrap` says what a process inside can see, `process` starts it and sees
to its end, and guest/ is what runs inside.
"""

from simct_pl.evaluation.sandbox.sandbox import ProgramRun, Sandbox, Verdict

__all__ = ["ProgramRun", "Sandbox", "Verdict"]
