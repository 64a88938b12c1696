"""Shared columns and prefix rules: what the published forms and their ablations read, and the default does not.

`column_logprobs` brings log-probabilities from ids to columns, `candidate_scores` scores the shared tokens and the unit
itself (SimCT, Eq. 6-7). UnitRows.prefix_unit_P and prefix_column_P are made for the prefix rule `mask` alone.
"""
