"""One model as a preflight sees it: its tokenizer, stops, template and configuration. No weights.

In: a ModelTokenizer, a configuration, a prompt. Out: SideReport, and what in it needs care.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from simct_pl.preflight.findings import Finding, Severity
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt

SHOWN_CHARACTERS = 1200
SHOWN_AT_THE_END = 300  # of them: tools fill the beginning, and where the answer begins tells the most


@dataclass(frozen=True)
class SideReport:
    """role: "student", or "teacher" and, of several, its name. arguments: of its chat template, as words. stops: as
    strings, the primary one first. rendered: the prompt in the model's own template, as text. num_bos: BOS tokens that
    the rendered prompt begins with; adds_bos: whether the tokenizer puts one in front of a text by itself. tools: of
    the prompt, as words. num_ids, num_rows: ids of the tokenizer, rows of the embeddings. softcap: of the logits, None
    without.
    """

    role: str
    architecture: str
    has_template: bool
    arguments: str
    stops: tuple[str, ...]
    rendered: str
    num_prompt_tokens: int
    tools: str
    bos: str | None
    num_bos: int
    adds_bos: bool
    num_ids: int
    num_rows: int
    softcap: float | None
    tied: bool
    config_dtype: str

    @classmethod
    def of(cls, role: str, tokenizer: ModelTokenizer, config: PretrainedConfig, prompt: Prompt) -> SideReport:
        """Render a prompt and read the configuration.

        Raises:
            TokenizerError: if the template refuses the messages.
        """
        ids = tokenizer.render(prompt if role == "student" else prompt.for_teacher)
        hf, text_config = tokenizer.hf, config.get_text_config()
        bos = hf.bos_token_id
        num_bos = next((i for i, token in enumerate(ids) if token != bos), len(ids)) if bos is not None else 0
        softcap = getattr(text_config, "final_logit_softcapping", None)
        return cls(
            role=role,
            architecture=text_config.model_type,
            has_template=hf.chat_template is not None,
            arguments=", ".join(f"{name}={value!r}" for name, value in tokenizer.template.items()) or "none",
            stops=tuple(str(hf.convert_ids_to_tokens(token)) for token in tokenizer.found_stop_ids),
            rendered=str(hf.decode(ids, skip_special_tokens=False)),
            num_prompt_tokens=len(ids),
            tools=", ".join(tool["function"]["name"] for tool in prompt.tools) or "none",
            bos=hf.bos_token,
            num_bos=num_bos,
            adds_bos=bos is not None and hf.encode("a", add_special_tokens=True)[:1] == [bos],
            num_ids=len(hf),
            num_rows=text_config.vocab_size,
            softcap=float(softcap) if softcap else None,
            tied=bool(text_config.tie_word_embeddings),
            config_dtype=str(text_config.dtype).removeprefix("torch."),
        )

    @property
    def bos_words(self) -> str:
        """How prompts begin."""
        if self.bos is None:
            return "none"
        if not self.num_bos:
            return f"no ({self.bos})"
        by_itself = "; the tokenizer would add one more, and is told not to" if self.adds_bos else ""
        return f"{self.bos} × {self.num_bos}{by_itself}"

    @property
    def rows_words(self) -> str:
        padding = self.num_rows - self.num_ids
        if padding == 0:
            return f"{self.num_ids:,} ids, as many rows"
        kind = "padding rows, never supervised" if padding > 0 else "ids without a row"
        return f"{self.num_ids:,} ids, {self.num_rows:,} rows: {abs(padding):,} {kind}"

    @property
    def shown(self) -> str:
        """The rendered prompt, its middle cut out where it is too long to be read."""
        cut = len(self.rendered) - SHOWN_CHARACTERS
        if cut <= 0:
            return self.rendered
        beginning = self.rendered[: SHOWN_CHARACTERS - SHOWN_AT_THE_END]
        return f"{beginning} … ({cut} more characters) … {self.rendered[-SHOWN_AT_THE_END:]}"

    def findings(self) -> list[Finding]:
        """What is wrong or odd on this side."""
        found = []
        if not self.stops:
            text = (
                f"The {self.role} has no token that ends a turn, so its responses run into the limit. Add one to its "
            )
            found.append(
                Finding(Severity.STOP, text + "chat template, generation_config.json or tokenizer_config.json.")
            )
        if not self.has_template:
            text = f"The {self.role} has no chat template: prompts are its bare text. Is it an instruction model?"
            found.append(Finding(Severity.CARE, text))
        if self.num_bos > 1:
            text = (
                f"The {self.role}'s rendered prompt begins with {self.num_bos} × {self.bos}. Check its chat template."
            )
            found.append(Finding(Severity.CARE, text))
        if self.adds_bos and self.has_template and not self.num_bos:
            text = f"The {self.role}'s tokenizer begins every text with {self.bos}, and its chat template does not."
            found.append(Finding(Severity.CARE, text))
        if self.num_rows < self.num_ids:
            text = (
                f"The {self.role}'s tokenizer has {self.num_ids:,} ids, its model {self.num_rows:,} rows: ids beyond "
            )
            found.append(Finding(Severity.CARE, text + "them cannot be read or sampled. Are the two of one model?"))
        return found
