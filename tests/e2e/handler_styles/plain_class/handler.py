"""One class, without a base; the server finds it by itself.  Its instance is made without arguments."""

import os
from collections import Counter  # a class, but not of this module


class WordCounter(object):
    def __init__(self):
        self.initialized = False
        self.stop_words = set()

    def initialize(self, ctx):
        properties = ctx.system_properties
        path = os.path.join(properties.get("model_dir"), "stop_words.txt")
        if not os.path.isfile(path):
            raise RuntimeError("Missing the stop_words.txt file")
        with open(path) as f:
            self.stop_words = {line.strip() for line in f}
        self.initialized = True

    def preprocess(self, data):
        text = data[0].get("data")
        if text is None:
            text = data[0].get("body")
        return text.decode("utf-8").lower().split()

    def inference(self, words):
        return Counter(word for word in words if word not in self.stop_words)

    def postprocess(self, counts):
        return [dict(sorted(counts.items()))]

    def handle(self, data, context):
        return self.postprocess(self.inference(self.preprocess(data)))
