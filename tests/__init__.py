"""Tests mirror the tree; `tests.reference` holds slow, independent float64 code written from the equations."""
