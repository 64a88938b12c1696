"""What a run will need, before it runs: a cost model, and the plan of a recipe. Loads no weights."""
