"""Integrated gradients: exact where the integral is known, and captum's numbers where captum is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ts.torch_handler._attribution import IntegratedGradients

TARGETS = {"one class": 1, "a class a row": [0, 1], "as a tensor": torch.tensor([1, 1])}


def cubes(inputs: torch.Tensor) -> torch.Tensor:
    """Two classes: the sum of the cubes, and that of the squares less 4."""
    return torch.stack([(inputs**3).sum(1), (inputs**2).sum(1) - 4], dim=1)


@pytest.mark.parametrize("target", TARGETS)
def test_from_zero_on_each_input_has_its_own_power(target: str) -> None:
    """The way from 0 to x gives x³ and x²; 2 points of the quadrature are exact for these."""
    inputs = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
    powers = {0: inputs**3, 1: inputs**2}
    classes = torch.as_tensor(TARGETS[target]).expand(2).tolist()
    expected = torch.stack([powers[each][row] for row, each in enumerate(classes)])
    torch.testing.assert_close(IntegratedGradients(cubes).attribute(inputs, TARGETS[target], n_steps=2), expected)


def test_they_add_up_to_what_the_output_gains_over_that_of_zero() -> None:
    inputs = torch.tensor([[0.3, -0.2], [1.5, 0.4]])

    def score(at: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(at @ torch.tensor([2.0, -1.0])) + 7

    attributions = IntegratedGradients(score).attribute(inputs)
    torch.testing.assert_close(attributions.sum(1), score(inputs) - score(torch.zeros_like(inputs)))


def test_the_model_of_a_worker_that_infers_still_gives_gradients() -> None:
    with torch.inference_mode():
        inputs = torch.ones(1, 2)
        assert IntegratedGradients(cubes).attribute(inputs, 0, n_steps=2).tolist() == [[pytest.approx(1)] * 2]


def test_a_model_without_gradients_says_so() -> None:
    with pytest.raises(RuntimeError, match="gives no gradients"):
        IntegratedGradients(lambda at: at.detach()).attribute(torch.ones(1, 2), 0)


@pytest.fixture
def captums() -> Callable[..., Any]:
    attr = pytest.importorskip("captum.attr", reason="captum is optional and not installed")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5)]
    model = torch.nn.Sequential(*layers).eval()
    return lambda kind: (attr.IntegratedGradients if kind == "captum" else IntegratedGradients)(model).attribute


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("steps", [15, 50])
def test_captum_gives_the_same(captums: Callable[..., Any], target: str, steps: int) -> None:
    images = torch.randn(2, 3, 8, 8)
    ours, theirs = (captums(kind)(images, target=TARGETS[target], n_steps=steps) for kind in ("tserve", "captum"))
    torch.testing.assert_close(ours, theirs.to(ours.dtype))
