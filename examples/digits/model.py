"""The network of the digits example: a small convolutional net that sees an image as 8 x 8 grey values."""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, pad

# So little work is slower when threads share it, by far when other processes want the same cores.
torch.set_num_threads(1)

# To undo the normalisation of the stock handler, and to weigh red, green and blue as the eye does.
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])
LUMA = torch.tensor([0.299, 0.587, 0.114])


class DigitNet(nn.Module):
    """(n, 3, 224, 224) as `image_classifier` normalises it in, (n, 10) logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", (LUMA * STD).view(1, 3, 1, 1), persistent=False)
        self.darkest = float(LUMA @ MEAN)
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

    def scans(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, 224, 224) normalised to (n, 1, 8, 8) brightness between 0 and 1.

        The handler scales an image to 256 x 256, which is 8 x 8 cells of 32 pixels, and cuts 16 pixels off each side:
        the outer cells are half there.  So brightness is averaged by half a cell, and the outer halves count twice.
        """
        halves = (avg_pool2d(images, 16) * self.weights).sum(dim=1, keepdim=True) + self.darkest
        return avg_pool2d(pad(halves, (1, 1, 1, 1), mode="replicate"), 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scans(images))
