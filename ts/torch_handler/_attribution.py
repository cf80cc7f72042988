"""Integrated gradients (Sundararajan et al., 2017): how much each input counts for one output of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class IntegratedGradients:
    """Called like the class of that name in captum, for one tensor of inputs."""

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    def attribute(self, inputs: torch.Tensor, target: Any = None, n_steps: int = 50) -> torch.Tensor:
        """Attributions in the shape of `inputs`, whose first dimension counts the rows; the baseline is zero.

        `target` is a class, or a list or tensor with one class a row.  Raises RuntimeError if the model gives no
        gradients.
        """
        return integrated(lambda at: selected(self.forward_func(at), target), inputs, torch.zeros_like(inputs), n_steps)


def integrated(
    score: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, baseline: torch.Tensor, steps: int
) -> torch.Tensor:
    """(inputs - baseline) times the mean gradient of `score`, one number a row, on the way from one to the other.

    The mean is by Gauss-Legendre quadrature with `steps` points, one pass of the model each.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    way = (inputs - baseline).detach()
    total = torch.zeros_like(way)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        with torch.inference_mode(False), torch.enable_grad():
            at = (baseline + float(point) * way).detach().clone().requires_grad_()
            outputs = score(at)
            if not outputs.requires_grad:
                raise RuntimeError("The model gives no gradients, so its outputs cannot be attributed to its inputs.")
            (gradient,) = torch.autograd.grad(outputs.sum(), at)
        total += float(weight) * gradient
    return total * way


def selected(output: torch.Tensor, target: Any) -> torch.Tensor:
    """By row the one number of `output` that `target` names; a row of one number needs no target."""
    if target is None or output.dim() == 1:
        return output.reshape(len(output), -1).sum(1)
    if isinstance(target, (list, torch.Tensor)) and torch.as_tensor(target).dim() == 1:
        return output.gather(1, torch.as_tensor(target, device=output.device).view(-1, 1)).squeeze(1)
    return output[:, int(target)]


def target_of(value: Any) -> Any:
    """A target as a client sends it: JSON gives a number or a list, a form field digits.  ValueError for other text."""
    if isinstance(value, (bytes, bytearray)):
        value = value.decode()
    return int(value) if isinstance(value, str) else value
