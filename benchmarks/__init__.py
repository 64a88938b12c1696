"""One script each, one table each: `python -m benchmarks.<name>` prints it and writes it into docs/performance.md.

Every number of a table comes from one run on one machine, and the ratios between contenders are what to read. Nothing
here is imported by the library.
"""
