"""The stock classifier of images with a transform and a number of classes of its own."""

import torch

from ts.torch_handler.image_classifier import ImageClassifier


class ShadeClassifier(ImageClassifier):
    topk = 1

    def image_processing(self, image):
        grey = image.convert("L").resize((2, 2))
        return torch.tensor(list(grey.tobytes())).float().reshape(1, 2, 2) / 255

    def postprocess(self, data):
        return data.argmax(1).tolist()
