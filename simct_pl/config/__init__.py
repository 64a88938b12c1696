"""Recipes: YAML files and a command line in; a trainer, a module and data, or an error that fits on one screen, out.

`recipes` finds files by path or name, `recipe_parser` says what is wrong in them, `lightning_cli` makes what they name
and runs `fit`, `validate` and `test`. `callback_package` lets `callbacks.X` in a recipe be ours or the user's,
`summary` is what a fit shows at its end.
"""
