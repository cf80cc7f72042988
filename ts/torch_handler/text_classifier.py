"""The stock handler `text_classifier`: a text in, the probability of each class out."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ts.handler_utils.text_utils import ngrams_iterator
from ts.handler_utils.timer import timed
from ts.torch_handler._attribution import target_of
from ts.torch_handler._embedding import EmbeddingGradients
from ts.torch_handler._requests import content_of
from ts.torch_handler.text_handler import TextHandler
from ts.utils.util import map_class_to_label


class TextClassifier(TextHandler):
    """For models of `(numbers of all n-grams in one row, offsets of the texts in it)` to (texts, classes) of logits.

    An explanation needs the model's embedding, an `Embedding` or `EmbeddingBag`, as its attribute `embedding`.
    """

    ngrams = 2

    @timed
    def preprocess(self, data: Any) -> Any:
        """The numbers of the batch's n-grams in one row, and the tokens: a list of them, or of lists for more texts."""
        tokens = [self._tokens(row) for row in data]
        numbers = [self._number(gram) for each in tokens for gram in ngrams_iterator(each, self.ngrams)]
        row = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return row, tokens[0] if len(tokens) == 1 else tokens

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """One row of logits for each text."""
        numbers, tokens = data
        with torch.inference_mode():
            return self.model(numbers, self._offsets(tokens), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """By text `{label: probability}` of every class."""
        return map_class_to_label(torch.softmax(data, dim=1).tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: Any = 0) -> Any:
        """By text `words` and the `importances` of these: integrated gradients on their embeddings, scaled to length 1.

        `words` are the n-grams in the order in which the model has them.
        """
        numbers, tokens = text_preprocess
        offsets = self._offsets(tokens)
        gradients = EmbeddingGradients(self.model, getattr(self.model, "embedding", None), type(self).__name__)
        attributions = gradients.attribute(numbers, offsets, target_of(target))
        ends = [*offsets.tolist()[1:], len(numbers)]
        texts = zip(_by_text(tokens), offsets.tolist(), ends, strict=True)
        return [
            {
                "words": list(ngrams_iterator(text, self.ngrams)),
                "importances": self.summarize_attributions(attributions[start:end]).tolist(),
            }
            for text, start, end in texts
        ]

    def _tokens(self, row: Any) -> list[str]:
        text = content_of(row) or ""
        if isinstance(text, (bytes, bytearray)):
            text = text.decode("utf-8")
        text = self._expand_contractions(self._remove_html_tags(text).lower())
        return self._tokenize(self._remove_punctuation(self._remove_accented_characters(text)))

    def _number(self, gram: str) -> int:
        vocabulary = self.source_vocab
        if isinstance(vocabulary, dict) and gram not in vocabulary and "<unk>" in vocabulary:
            gram = "<unk>"
        return int(vocabulary[gram])

    def _offsets(self, tokens: Any) -> torch.Tensor:
        """Where in the row of numbers each text begins."""
        sizes = [len(list(ngrams_iterator(text, self.ngrams))) for text in _by_text(tokens)]
        return torch.tensor([0, *itertools.accumulate(sizes[:-1])], dtype=torch.int64, device=self.device)


def _by_text(tokens: Any) -> list[list[str]]:
    return tokens if tokens and isinstance(tokens[0], list) else [tokens]
