"""The network of the digits example: a small convolutional net for 8 x 8 grey scans."""

import torch
from torch import nn


class DigitNet(nn.Module):
    """(n, 1, 8, 8) brightness between 0 and 1 in, (n, 10) logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(64 * 4 * 4, 10),
        )

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        return self.layers(scans)
