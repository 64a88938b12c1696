"""Objectives: what a student loses at each unit. Logits of both models at a few whole units in, one loss a unit out.

`base` says what an objective is, `dual_space` what one in two hidden spaces is; `inputs/` makes what they all read.
The default is `token_conditional`, over what `token_paths/` links; all others are published methods and ablations.
Over the shared tokens, by `columns/`: `simct`, and its baseline `shared_vocab`. By the units' own probability: `alm`,
`dpca`, `cross_entropy`. Over both vocabularies: `uld`, `gold`, `xtoken`, `bpm`. In hidden space: `dskd`, by
`projectors`. `mixture` adds objectives up. `divergences` and `sorted_mass` compare two distributions, `api` is one
response's loss as a plain function of two logit matrices.
"""
