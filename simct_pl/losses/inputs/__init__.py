"""What objectives read: alignments, vocabularies and logits in; index arrays and log-probabilities out.

`unit_rows` says which logit rows make up which unit, `vocab_tables` which ids count for which shared column. `logprobs`
has one model's log-probabilities of a chunk.
"""
