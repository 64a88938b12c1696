"""Scores a model on benchmarks. In: a model folder, or a student in training, and benchmarks. Out: graded responses on
disk, and their statistics with spread in a table, a JSON file and MLflow.

`evaluate` is the command; `runner` asks and grades, `items` keeps what was graded, `scores` and `report` say what came
of it. `benchmark` says what a benchmark is, `code_benchmark` what those of code share (code out of a response, tests
run on it); benchmarks/ has one file a data set. Maths is compared by `boxed` and `maths`, code runs in the sandbox/. A
`grader` is the small form of a benchmark: one prompt and one response in, a score out.
"""
