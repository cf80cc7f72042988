"""What handlers of text share: the vocabulary a model was trained with, and the clean-up of text before it is split."""

from __future__ import annotations

import abc
import errno
import re
import string
import unicodedata
from pathlib import Path
from typing import Any

import torch

from ts.handler_utils.text_utils import get_tokenizer
from ts.torch_handler._weights import found, load_tensors
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.utils.util import CLEANUP_REGEX

_LONGEST_FIRST = sorted(CONTRACTION_MAP, key=len, reverse=True)
_CONTRACTIONS = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, _LONGEST_FIRST))})(?!\w)", re.IGNORECASE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_WORD_MARKS = str.maketrans("", "", "\u0120\u2581")  # of byte-level BPE, of SentencePiece
_APOSTROPHES = str.maketrans("\u2018\u2019", "''")


class TextHandler(BaseHandler, abc.ABC):
    """`source_vocab` gives the number of a token: a dict, or an object that is asked the same way.

    `tokenizer` splits a text; a subclass may put another in its place.
    """

    source_vocab: Any = None
    tokenizer: Any = staticmethod(get_tokenizer("basic_english"))
    input_text: Any = None

    def initialize(self, context: Any) -> None:
        """As BaseHandler, and read the vocabulary.

        Raises FileNotFoundError without its file, RuntimeError if that is broken, pickle.UnpicklingError if it holds
        more than plain containers; each names the file.
        """
        super().initialize(context)
        self.source_vocab = load_tensors(
            str(self.get_source_vocab_path(context)),
            self.device,
            kind="a vocabulary",
            advice="the vocabulary as a plain dict of token and index",
        )

    def get_source_vocab_path(self, context: Any) -> str:
        """The manifest's `sourceVocab`, else `source_vocab.pt` of the model folder; FileNotFoundError without it."""
        folder = Path(context.system_properties.get("model_dir"))
        named = (context.manifest or {}).get("model", {}).get("sourceVocab") or "source_vocab.pt"
        if not (folder / named).is_file():
            raise FileNotFoundError(
                errno.ENOENT,
                f"Missing the source_vocab file: {type(self).__name__} needs the vocabulary of the model's training as "
                f"{named!r}, {found(folder)}",
                str(folder / named),
            )
        return str(folder / named)

    def _remove_html_tags(self, text: str) -> str:
        return CLEANUP_REGEX.sub("", text)

    def _expand_contractions(self, text: str) -> str:
        """Write "isn't" as "is not"; the first letter keeps its case."""

        def full(short: re.Match[str]) -> str:
            expansion = CONTRACTION_MAP[short[0].lower()]
            return expansion[0].upper() + expansion[1:] if short[0][0].isupper() else expansion

        return _CONTRACTIONS.sub(full, text.translate(_APOSTROPHES))

    def _remove_accented_characters(self, text: str) -> str:
        """Letters without their accents; what has no such form in ASCII goes."""
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(_NO_PUNCTUATION)

    def _tokenize(self, text: str) -> Any:
        return self.tokenizer(text)

    def get_word_token(self, input_ids: Any, tokenizer: Any) -> list[str]:
        """The tokens of the first row of `input_ids`, without the marks that say that a word begins."""
        ids = torch.as_tensor(input_ids)
        row = ids[0] if ids.dim() > 1 else ids
        return [token.translate(_NO_WORD_MARKS) for token in tokenizer.convert_ids_to_tokens(row.tolist())]

    def summarize_attributions(self, attributions: Any) -> Any:
        """(tokens, width), or that of one row (1, tokens, width), to one number a token, together of length 1."""
        summed = attributions.sum(dim=-1)
        by_token = summed.squeeze(0) if summed.dim() > 1 else summed
        length = by_token.norm()
        return by_token / length if length > 0 else by_token
