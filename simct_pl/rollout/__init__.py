"""Rollout engines: prompts as token ids and the student's weights in; sampled ids with their log-probabilities out.

`engine` says what an engine is. `hf` generates on the student itself, `vllm` in the trainer's processes, `vllm_server`
on a server that reads weights from a folder, `vllm_nccl` on one that gets them from GPU to GPU. Shared by the last
three: `vllm_requests` (sampling, responses), `vllm_weights` (names and tensors); `vllm_process` is what vLLM finds in a
trainer's process and must leave there; `vllm_client` is the server's HTTP, `server_key` its lock. `retrying` asks an
engine again, `inference_model` is a model that only answers.
"""
