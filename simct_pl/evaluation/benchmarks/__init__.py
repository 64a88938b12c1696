"""The benchmarks. In: a data file or a hub data set. Out: problems, each with its prompt, and a grade for a response.

One file a data set. `programs` compares what a program prints; `graded_prompts` makes a benchmark of any file and any
grader.
"""
