"""Modules beside the handler, a package of the archive's own, and files found from the working folder."""

import json
import pathlib

import normalizer
from rules import plural
from rules.articles import article_of

from ts.torch_handler.base_handler import BaseHandler


class SentenceHandler(BaseHandler):
    def initialize(self, context):
        with open("words.json") as f:
            self.words = json.load(f)
        self.greeting = pathlib.Path("data/greeting.txt").read_text().strip()
        self.initialized = True

    def handle(self, data, context):
        from rules.late import shout  # only now

        answers = []
        for row in data:
            word = normalizer.normalize(row["body"], self.words)
            answers.append(shout(f"{self.greeting} {article_of(word)} {word}, {plural(word)}"))
        return answers
