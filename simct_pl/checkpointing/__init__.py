"""A run on disk, and whether and where it may go on. `callbacks.Checkpoint` saves and restores; `--resume` chooses.

| file | in → out |
|---|---|
| folder | a state file and its manifest → a checkpoint that is whole or not there; the newest good one, the best one |
| position | a trainer → the run's place in its data, and Lightning's loop counters for exactly that place |
| resume | `--resume` and a folder → the checkpoint to begin from; two recipes → whether they are one run's |
"""
