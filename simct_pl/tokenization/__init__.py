"""Two tokenizers, down to exact bytes: model folders and sampled ids in; one response in the tokens of both models out.

`loading` opens a tokenizer's files, `families` has the rules that make bytes of its entries, `bytes` the table of them,
`cache` keeps tables on disk. `model_tokenizer` is one model's tokenizer with its template and stops (`chat`,
`thinking`), `completeness` whether a template wrote all it was given, `turns` where a conversation's answers lie;
`pair` is two of them, and what an aligner gets. `shared_vocab` says which tokens both have, `projection` how one spells
the other's, `resync` where two byte strings agree again after a tokenizer has rewritten something.
"""
