"""What runs inside the sandbox: two processes that meet over a pipe, and what they share.

In: code under test, tests, limits. Out: a verdict, or what a program prints. `solution_process` holds the code and
answers calls; `test_process` holds the tests and the secret. `suite` reads the tests, `wire` carries values, `confine`
sets limits. Standard library only, and relative imports, because the folder is mounted there by itself.
"""

SOLUTION = "solution"  # the module that the code is there, and that tests may import its names from
