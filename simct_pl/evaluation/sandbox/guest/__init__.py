"""What runs inside the sandbox: two processes that meet over a pipe, and what they share.

The `candidate` holds the code under test; the `examiner` holds the tests and the secret. Standard library only, and
relative imports, because the folder is mounted there by itself.
"""
