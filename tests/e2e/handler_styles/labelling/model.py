"""As many scores as there are features: themselves."""

from torch import nn


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.identity = nn.Identity()

    def forward(self, features):
        return self.identity(features)
