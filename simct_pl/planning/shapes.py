"""What the cost model knows of a decoder: its sizes, and the parameters, products and activations they lead to.

Llama, Qwen2, Phi-3 and Gemma-2 layers: grouped-query attention, a gated feed-forward block, RMS norms. Every number is
one that benchmarks/cost_checks.py compares with the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from simct_pl.errors import UnsupportedModelError

KNOWN = ("llama", "qwen2", "gemma2", "phi3")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one decoder.

    qkv_bias: biases on queries, keys and values. sandwich_norms: a norm behind attention and behind the feed-forward
    block too, all of them in fp32 (Gemma-2). num_sliding_layers: layers that see the last `window` tokens only.
    """

    num_layers: int
    width: int
    ff_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    qkv_bias: bool = False
    sandwich_norms: bool = False
    num_sliding_layers: int = 0
    window: int = 0

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelShape:
        """Read a transformers configuration.

        Raises:
            UnsupportedModelError: for an architecture, or an option of one, that is not counted here.
        """
        if config.model_type not in KNOWN:
            raise UnsupportedModelError(
                f"model_type is {config.model_type!r}; the cost model counts {', '.join(KNOWN)}."
            )
        if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
            raise UnsupportedModelError(
                f"{config.model_type} with attention_bias or mlp_bias; the cost model counts no such bias."
            )
        num_sliding = (getattr(config, "layer_types", None) or []).count("sliding_attention")
        return cls(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            ff_width=config.intermediate_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocab=config.vocab_size,
            tied=config.tie_word_embeddings,
            qkv_bias=config.model_type == "qwen2",
            sandwich_norms=config.model_type == "gemma2",
            num_sliding_layers=num_sliding,
            window=config.sliding_window if num_sliding else 0,
        )

    # ---- parameters ----

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Entries of the matrices that every token is multiplied with in one layer."""
        attention = self.width * (2 * self.query_width + 2 * self.kv_width)
        return attention + 3 * self.width * self.ff_width

    @property
    def layer_parameters(self) -> int:
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = (4 if self.sandwich_norms else 2) * self.width
        return self.layer_matrices + biases + norms

    @property
    def head_parameters(self) -> int:
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.num_layers * self.layer_parameters + self.width + embeddings

    # ---- forward of the body: ids → last hidden states ----

    def matrix_flops(self, num_tokens: float) -> float:
        """Products with the layers' matrices."""
        return 2 * num_tokens * self.num_layers * self.layer_matrices

    def attention_flops(self, length: int, *, causal: bool = True) -> float:
        """Queries times keys and weights times values, one sequence from its beginning.

        causal: a kernel that skips what the mask hides; without, every query meets every key.
        """
        pairs = sum(
            num_layers * (_causal_pairs(length, window) if causal else length**2)
            for num_layers, window in self._spans(length)
        )
        return 4 * self.query_width * pairs

    def kv_bytes(self, length: int, bytes_per_value: int) -> int:
        """Keys and values that the next token of a sequence of this length reads."""
        tokens = sum(num_layers * min(length, window) for num_layers, window in self._spans(length))
        return 2 * self.kv_width * bytes_per_value * tokens

    def _spans(self, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(number of layers, how many tokens they see): of layers that see everything, and of sliding ones."""
        return (self.num_layers - self.num_sliding_layers, length), (self.num_sliding_layers, self.window)

    # ---- what backward needs of the forward ----

    def layer_activation_bytes(self, bytes_per_value: int) -> int:
        """Kept for backward by one layer, a token, without checkpointing; attention by a kernel that keeps no weights.

        Weights and activations are of one dtype. Norms compute in fp32 whatever it is: they keep their fp32 input, what
        it is divided by, and the normed states, which Gemma-2 keeps in fp32 as well.
        """
        if self.sandwich_norms:
            norms = 2 * (8 + bytes_per_value) + 2 * 8
            divisors = 4 * 4
        else:
            norms = 2 * (4 + 2 * bytes_per_value)
            divisors = 2 * 4
        attention = 2 * self.query_width + 2 * self.kv_width  # queries, result; keys, values
        feed_forward = 4 * self.ff_width  # gate, its activation, up, their product
        log_sum_exp = 4 * self.num_heads
        return norms * self.width + divisors + log_sum_exp + bytes_per_value * (attention + feed_forward)

    def activation_bytes(self, bytes_per_value: int, *, checkpointing: bool) -> int:
        """Kept for backward by the body, a token; with checkpointing the layers' inputs only."""
        layer = self.width * bytes_per_value if checkpointing else self.layer_activation_bytes(bytes_per_value)
        final_norm = self.width * (8 if self.sandwich_norms else 4 + bytes_per_value)
        return self.num_layers * layer + final_norm


def _causal_pairs(length: int, window: int) -> int:
    """Query-key pairs of a causal sequence in which a token sees itself and at most window - 1 before it."""
    seen = min(length, window)
    return seen * (seen + 1) // 2 + (length - seen) * seen
