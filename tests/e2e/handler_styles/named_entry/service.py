"""An entry point of another name: the archive says `service:score`.  A class beside it does not count."""


class Scorer:
    def __init__(self, weight):
        self.weight = weight

    def score(self, text):
        return self.weight * len(text.split())


scorer = None


def score(data, context):
    global scorer
    if data is None:
        scorer = Scorer(context.model_yaml_config["handler"]["weight"])
        return None
    return [scorer.score(row.get("body")) for row in data]
