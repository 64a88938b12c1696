"""The benchmarks. In: a data file or a hub data set. Out: problems, each with its prompt, and a grade for a response.

`base` says what a benchmark is. `code_benchmark` finds code in a response and runs tests on it, `programs` compares
what it prints; `graded_prompts` makes a benchmark of any file and any grader. The others are one data set each.
"""
