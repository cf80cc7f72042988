"""Doubles what it is given; it has no weights."""

from torch import nn


class Doubling(nn.Module):
    def forward(self, data):
        return data * 2
