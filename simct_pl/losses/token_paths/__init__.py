"""What TokenConditionalLoss compares at each student token. In: a pair's tokenizers, then responses. Out: TokenPaths.

`vocab_links` makes classes of both vocabularies, once a pair; `neighbours` asks the tokenizers what the tokens beside a
position change, `asking` makes `categories` of the answers; `path_builder` walks a response and fills `paths`, the flat
arrays that the chunker slices.
"""
