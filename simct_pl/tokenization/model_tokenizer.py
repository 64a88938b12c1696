"""One model's tokenizer: its ids, its bytes, its chat template and its stops.

In: a model folder, a tokenizer.json or a hub name. Out: ModelTokenizer. The pipeline is the one in tokenizer.json,
unchanged: AutoTokenizer rebuilds pipelines and gives other ids on some texts. loading.py finds the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_pl.errors import MissingStopTokenError, PromptDataError, TokenizerError, UnsupportedTokenizerError
from simct_pl.tokenization.bytes import TokenBytes, as_bytes
from simct_pl.tokenization.chat import NO_ARGUMENTS, check_arguments, find_stop_ids, render_prompt
from simct_pl.tokenization.loading import load_tokenizer
from simct_pl.types import Message, Prompt, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ModelTokenizer:
    """A tokenizer with exact bytes.

    Args:
        hf: the fast tokenizer.
        generation_stop_ids: eos ids of the model's generation_config.json.
        name: how errors call it.
        num_rows: of the model's embeddings, where known; ids beyond them (Gemma-3-1B's image token) have no bytes.
        template: arguments of its chat template, for every prompt.

    Raises:
        UnsupportedTokenizerError: if its tokens have no exact bytes.
        TokenizerError: for an argument that its chat template does not use.
    """

    #: A tokenizer that cuts as this one does and has more tokens, with the ids of those that are kept, if there is one.
    cut_from: tuple[ModelTokenizer, list[int]] | None = None

    def __init__(
        self,
        hf: PreTrainedTokenizerFast,
        generation_stop_ids: Sequence[int] = (),
        name: str = "the tokenizer",
        num_rows: int | None = None,
        template: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> None:
        self.hf, self.name, self.template = hf, name, dict(template)
        check_arguments(hf, template, name)
        try:
            self.table = TokenBytes.from_tokenizer(hf).up_to(num_rows)
        except UnsupportedTokenizerError as error:
            raise UnsupportedTokenizerError(f"{name}: {error}") from error
        stop_ids = find_stop_ids(hf, generation_stop_ids, template)
        self.found_stop_ids = tuple(token_id for token_id in stop_ids if token_id < len(self.table))

    @classmethod
    def from_pretrained(cls, path: str, template: Mapping[str, Any] | None = None) -> ModelTokenizer:
        """Load from a model folder, a folder with a tokenizer, a tokenizer.json path, or a hub name.

        template: arguments of its chat template.

        Raises:
            MissingFileError, ModelFolderError, TokenizerError: naming the path and the fix.
        """
        hf, generation_stop_ids, num_rows = load_tokenizer(path)
        return cls(hf, generation_stop_ids, path, num_rows, template or NO_ARGUMENTS)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn, the one that follows an assistant's words in the chat template first.

        Raises:
            MissingStopTokenError: if there is none; found_stop_ids is empty then.
        """
        if not self.found_stop_ids:
            raise MissingStopTokenError(
                f"{self.name} has no token that ends a turn: no chat template with one, no eos_token_id in "
                "generation_config.json, no eos_token in tokenizer_config.json. Add one of the three."
            )
        return self.found_stop_ids

    @cached_property
    def fingerprint(self) -> str:
        """Names the ids, the chat template and the stops: what a prompt and a response are in tokens."""
        parts: list[Any] = [self.table.fingerprint, self.hf.chat_template, self.found_stop_ids]
        if self.template:  # without, what was written before there were any is still known
            parts.append(self.template)
        return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()

    def is_canonical(self, text: str, ids: Sequence[int]) -> bool:
        """Whether ids are how this tokenizer spells a text, alone or as the continuation of a line before it.

        The two differ in the dummy prefix: after its template a model may answer `The` as well as `▁The`.
        """
        ids = list(ids)
        if self.encode(text) == ids:
            return True
        before = self.encode("\n")
        return self.table.dummy_prefix and self.encode("\n" + text) == [*before, *ids]

    def encode(self, text: str) -> list[int]:
        """Ids of a text: no specials added, and nothing in it becomes a control token.

        Raises:
            TokenizerError: for a text that UTF-8 cannot write.
        """
        return self.encode_batch([text])[0]

    @property
    def definition(self) -> str | None:
        """Its tokenizer.json."""
        definition: str = self.hf.backend_tokenizer.to_str()
        return definition

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for several texts at once."""
        backend = self.hf.backend_tokenizer
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True  # "as text"; prompts need the opposite, so it is set back
        try:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # it does not say of which text, nor why
            for text in texts:
                as_bytes(text)
            raise
        finally:
            backend.encode_special_tokens = before
        return [encoding.ids for encoding in encodings]

    def response_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of sampled ids, without stops, a dummy prefix and ids that have none (of a padded embedding)."""
        stops = set(self.found_stop_ids)
        ids_S = np.array([token for token in ids if token not in stops], np.int64)
        spelled = self.table.join(ids_S[self.table.known(ids_S)])
        return spelled.removeprefix(b" ") if self.table.dummy_prefix else spelled

    def response_text(self, ids: Sequence[int]) -> str:
        """The same as a text; what a cut character leaves behind becomes U+FFFD."""
        return self.response_bytes(ids).decode(errors="replace")

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of a prompt in the model's own chat template, ready for its answer (see tokenization/chat.py)."""
        return render_prompt(self.hf, messages, self.template, self.name, tools)

    def render(self, prompt: Prompt) -> list[int]:
        """The same of a prompt's messages with its tools; what is refused is refused by the prompt's row."""
        try:
            return self.render_prompt(prompt.messages, prompt.tools)
        except (TokenizerError, PromptDataError) as error:
            raise type(error)(f"Prompt {prompt.index}: {error}") from error
