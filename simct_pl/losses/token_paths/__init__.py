"""What TokenConditionalLoss compares at each student token. In: a pair's tokenizers, then responses. Out: TokenPaths.

Once a pair: `vocab_links` makes classes of both vocabularies. At a position: `neighbours` asks the tokenizers
about the tokens beside it, `cuts` finds what contradicts what has been cut, `shifts` links the vocabularies
anew inside a teacher token (a `shift`), and `asking` makes `categories` of it all. What was asked is kept:
`answers`, and `halves` of them, are `tables`, rows of numbers that point at `lists`; `kept` has them on disk.
For each response: `places` lays the tokens side by side and hashes (`rolling`) what each question depends on, and
`path_builder` gathers the answers as `paths`, small arrays that the chunker slices. In a strip: `masses` sums both
models' rows by them.
"""
