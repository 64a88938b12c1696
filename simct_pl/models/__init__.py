"""Causal language models as training needs them: a model folder in; hidden states, a head, whole or shared weights out.

`loading` checks a folder and opens it, `export` writes one. `lm_head` takes a model apart into body and head;
`microbatch` cuts a batch into forwards, `packing` lays one out in rows. `cross_entropy` is the loss of given responses,
`bits_per_byte` the same across tokenizers. `sharding` is FSDP2 and how to get whole tensors back, `read_once` loads a
model on several ranks, `ranks` is what these tell each other. `transplant` puts a body on another tokenizer, `hub`
uploads a folder.

`lora` puts adapters into a model, `adapter_folder` is what PEFT keeps of them, `merging` gives the weights that they
come to. `load_arguments` are transformers' own, quantisation among them.
"""
