"""Integrated gradients for models that begin with an embedding: how much each of the embedded tokens counts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding_bag

from ts.torch_handler._attribution import integrated, selected

_STEPS = 50
_REFERENCE = 0  # the token number of "no word", from which the way to the text's own words begins


class EmbeddingGradients:
    """While it attributes, what `layer` answers is made from the vectors on that way, not from token numbers."""

    def __init__(self, model: Any, layer: Any, handler: str) -> None:
        """Raises NotImplementedError unless `layer` is an embedding of an eager model."""
        known = isinstance(layer, (torch.nn.Embedding, torch.nn.EmbeddingBag))
        if not known or isinstance(model, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"{handler} explains by the model's attribute `embedding`, which must be a torch.nn.Embedding or "
                f"EmbeddingBag of a model that is not TorchScript; {type(model).__name__} has "
                f"{'none' if layer is None else type(layer).__name__}."
            )
        self._model = model
        self._layer = layer

    def attribute(self, numbers: torch.Tensor, offsets: torch.Tensor, target: Any) -> torch.Tensor:
        """(tokens,) and the offsets of the texts in them, to (tokens, width of the embedding)."""
        table = self._layer.weight.detach()
        vectors, reference = table[numbers], table[torch.full_like(numbers, _REFERENCE)]

        def score(at: torch.Tensor) -> torch.Tensor:
            hook = self._layer.register_forward_hook(lambda layer, inputs, output: self._answer(at, offsets, output))
            try:
                return selected(self._model(numbers, offsets), target)
            finally:
                hook.remove()

        return integrated(score, vectors, reference, _STEPS)

    def _answer(self, vectors: torch.Tensor, offsets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if isinstance(self._layer, torch.nn.Embedding):
            return vectors.view_as(output)
        places = torch.arange(len(vectors), device=vectors.device)
        return embedding_bag(places, vectors, offsets, mode=self._layer.mode)
