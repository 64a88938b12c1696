"""Prompts: files and data sets in; `Prompt`s, batches of them, or a mixture of several sources out. No tokenizer here.

| file | in → out |
|---|---|
| local_rows | a file on disk (JSON, CSV, Parquet, compressed or not) → its rows as they are, or an error naming it |
| messages | a row's conversation (a text, chat messages, ShareGPT turns) → messages, and the answer at its end apart |
| tools | what a row says of tools (their schemas, calls of them), in any usual form → one form; a table's columns |
| source | PromptSource: where rows are and which fields hold what → `Prompt`s |
| prompts | PromptDataModule: sources → shuffled batches for each rank, in which a resumed run finds its place |
| words, overlap | texts → words without case, accents and layout; which prompts share a run of them |
| draw, filters | rows → those of a fair draw; those that may be drawn |
| mixture, build | sources → mixture.parquet and a manifest of what became of every row |
"""
