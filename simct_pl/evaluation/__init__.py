"""Scores a model on benchmarks. In: a model folder, or a student in training, and benchmarks. Out: graded responses on
disk, and their statistics with spread in a table, a JSON file and MLflow.

`evaluate` is the command; `runner` asks and grades, `items` keeps what was graded, `scores` and `report` say what came
of it. benchmarks/ read problems and grade responses: maths by `boxed` and `maths`, code in the sandbox/. A `grader` is
the small form of a benchmark: one prompt and one response in, a score out.
"""
