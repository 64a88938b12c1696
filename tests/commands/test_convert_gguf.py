"""A tiny Llama written as GGUF the way llama.cpp lays it out must come back weight for weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from simct_pl.commands.convert_gguf import main
from simct_pl.errors import MissingFileError, ModelFolderError, RecipeError

gguf = pytest.importorskip("gguf")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["1 2", "h i"]  # `12` is a token that digit splitting never makes
TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
HEADS, KV_HEADS, WIDTH, INNER = 4, 2, 32, 48

TENSOR_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}


def test_an_existing_folder_is_left_alone_also_behind_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match="model' exists"):
        main(["--gguf=~/a.gguf", "--output=~/model"])
    with pytest.raises(ModelFolderError, match=r"a\.gguf"):
        main(["--gguf=~/a.gguf", "--output=~/new"])


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of a query or key projection: the two rotary halves of a head alternate."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path: Path, model: LlamaForCausalLM, pre_tokenizer: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))  # 3: control, 1: normal
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    state = model.state_dict()
    for name, gguf_name in TENSOR_NAMES.items():
        weight = state[name].numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(gguf_name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, original: LlamaForCausalLM) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", original, "smollm")


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    output = source.parent / "converted"
    assert main(["--gguf", str(source), "--output", str(output)]) == 0
    return output


def test_the_weights_come_back(converted: Path, original: LlamaForCausalLM) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted).eval()
    assert not hasattr(model.config, "quantization_config")
    ids = torch.tensor([[5, 80, 7, 200, 33]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=0)


def test_digits_are_split_as_the_vocabulary_was_trained(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("hi 12") == ["hi", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("hi 12é").input_ids) == "hi 12é"


def test_other_vocabularies_keep_the_plain_split(
    tmp_path: Path, original: LlamaForCausalLM, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_gguf(tmp_path / "other.gguf", original, "some-other")
    assert main(["--gguf", str(source), "--output", str(tmp_path / "other"), "--dtype", "bfloat16"]) == 0
    assert "'some-other'" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "other").tokenize("12") == ["12"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "other", dtype="auto").dtype == torch.bfloat16


def test_special_tokens_and_template_are_written(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id is not None
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>hi<|im_end|>"


def test_bad_input_is_refused_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    not_gguf = tmp_path / "model.gguf"
    not_gguf.write_bytes(b"PK\3\4")
    with pytest.raises(MissingFileError, match="nowhere"):
        main(["--gguf", str(tmp_path / "nowhere.gguf"), "--output", str(output)])
    with pytest.raises(ModelFolderError, match="not a GGUF file"):
        main(["--gguf", str(not_gguf), "--output", str(output)])
    with pytest.raises(MissingFileError, match="no-such-package"):
        main(["--package", "no-such-package", "--output", str(output)])
    with pytest.raises(MissingFileError, match=r"has 0 \.gguf files"):
        main(["--package", "numpy", "--output", str(output)])
    with pytest.raises(RecipeError, match="exists"):
        main(["--gguf", str(source), "--output", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf"}
