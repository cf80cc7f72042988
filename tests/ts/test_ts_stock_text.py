"""The text handlers: clean-up, vocabulary, classification of batches, explanations."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ts.context import Context, RequestProcessor
from ts.torch_handler.contractions import CONTRACTION_MAP
from ts.torch_handler.text_classifier import TextClassifier
from ts.torch_handler.text_handler import TextHandler

Prepare = Callable[..., Context]

VOCABULARY = {"<unk>": 0, "good": 1, "bad": 2, "it": 3, "is": 4, "not": 5, "not good": 6, "cafe": 7}
BAG = """
import torch

class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(8, 2)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor(
                [[0, 0], [3, 0], [0, 3], [0, 0], [0, 0], [0, 1], [0, 9], [0, 0]], dtype=torch.float32))

    def forward(self, text, offsets):
        return torch.tanh(self.embedding(text, offsets)) * 4
"""
WORDS = BAG.replace("torch.nn.EmbeddingBag(8, 2)", "torch.nn.Embedding(8, 2)").replace(
    "return torch.tanh(self.embedding(text, offsets))", "return torch.tanh(self.embedding(text)).mean(0, keepdim=True)"
)


@pytest.fixture
def classifier(archive: Prepare, tmp_path: Path) -> Callable[..., tuple[TextClassifier, Context]]:
    def classifier(source: str = BAG, size: int = 1, **headers: str) -> tuple[TextClassifier, Context]:
        torch.save(VOCABULARY, tmp_path / "source_vocab.pt")
        labels = json.dumps({"0": "praise", "1": "blame"})
        context = archive({"net.py": source, "index_to_name.json": labels}, modelFile="net.py")
        context.request_processor = [RequestProcessor(dict(headers)) for _ in range(size)]
        handler = TextClassifier()
        handler.initialize(context)
        return handler, context

    return classifier


def ask(handler: TextClassifier, context: Context, *texts: object) -> list[str]:
    answers = handler.handle([{"body": text} for text in texts], context)
    return [max(answer, key=answer.get) for answer in answers]


@pytest.mark.parametrize("text", ["It is good!", b"It's <b>good</b>", bytearray(b"GOOD"), "good &amp; good"])
def test_forms_of_text(classifier: Any, text: object) -> None:
    handler, context = classifier()
    (answer,) = handler.handle([{"data": text}], context)
    assert sum(answer.values()) == pytest.approx(1)
    assert answer["praise"] > 0.6 > answer["blame"]


def test_bigrams_count(classifier: Any) -> None:
    handler, context = classifier()
    assert ask(handler, context, "good") == ["praise"]
    assert ask(handler, context, "It isn't good") == ["blame"]
    handler.ngrams = 1
    assert ask(handler, context, "It isn't good") == ["praise"]


def test_a_batch_answers_as_each_text_alone(classifier: Any) -> None:
    handler, context = classifier(size=4)
    texts = ["good", "It is bad, bad, bad", "", "isn't good"]
    together = handler.handle([{"body": text} for text in texts], context)
    alone = [handler.handle([{"body": text}], context)[0] for text in texts]
    assert together == [pytest.approx(answer) for answer in alone]
    assert together[2] == {"praise": 0.5, "blame": 0.5}


def test_preprocess_of_one_text_gives_numbers_and_tokens(classifier: Any) -> None:
    handler, _ = classifier()
    numbers, tokens = handler.preprocess([{"body": "It isn't good."}])
    assert tokens == ["it", "is", "not", "good"]
    assert numbers.tolist() == [3, 4, 5, 1, 0, 0, 6]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<p>It&nbsp;is</p>", ["itis"]),
        ("Caf\u00e9 au lait?", ["cafe", "au", "lait"]),
        ("I'd say: don't!", ["i", "would", "say", "do", "not"]),
        ("They can\u2019t've", ["they", "cannot", "have"]),
        ("rock'n'roll", ["rocknroll"]),
        ("\u65e5\u672c", []),
    ],
)
def test_clean_up(classifier: Any, text: str, tokens: list[str]) -> None:
    handler, _ = classifier()
    assert handler.preprocess([text])[1] == tokens


def test_steps_of_the_clean_up(classifier: Any) -> None:
    handler, _ = classifier()
    assert handler._remove_html_tags("a <br/>b &lt;") == "a b "
    assert handler._expand_contractions("Isn't it? They're here, weren't they. Wasn'ts") == (
        "Is not it? They are here, were not they. Wasn'ts"
    )
    assert handler._remove_accented_characters("na\u00efve \u0141") == "naive "
    assert handler._remove_punctuation("a.b, (c)!") == "ab c"
    assert handler._tokenize("One two") == ["one", "two"]


def test_contractions_are_lower_case_and_expand_to_words() -> None:
    assert {key: CONTRACTION_MAP[key] for key in ("isn't", "i'd", "won't", "let's", "y'all've")} == {
        "isn't": "is not",
        "i'd": "i would",
        "won't": "will not",
        "let's": "let us",
        "y'all've": "you all have",
    }
    assert all("'" in short and short == short.lower() for short in CONTRACTION_MAP)
    assert not any("'" in full for full in CONTRACTION_MAP.values())


def test_vocabulary_named_by_the_manifest(classifier: Any, tmp_path: Path) -> None:
    handler, context = classifier()
    (tmp_path / "source_vocab.pt").rename(tmp_path / "words.pt")
    context.manifest["model"]["sourceVocab"] = "words.pt"
    handler.initialize(context)
    assert ask(handler, context, "bad") == ["blame"]


def test_path_of_the_vocabulary_is_a_hook(classifier: Any, tmp_path: Path) -> None:
    _, context = classifier()
    (tmp_path / "source_vocab.pt").rename(tmp_path / "own.pt")

    class Own(TextClassifier):
        def get_source_vocab_path(self, context: Any) -> str:
            return str(tmp_path / "own.pt")

    handler = Own()
    handler.initialize(context)
    assert ask(handler, context, "bad") == ["blame"]


def test_missing_vocabulary(classifier: Any, tmp_path: Path) -> None:
    handler, context = classifier()
    (tmp_path / "source_vocab.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Missing the source_vocab file: .*, but the model folder"):
        handler.initialize(context)


def test_pickled_vocabulary_needs_torchs_own_switch(
    classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As old archives have it: an object that answers `vocabulary[token]`."""
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    handler, context = classifier()
    (tmp_path / "oldwords.py").write_text("class Words:\n    def __getitem__(self, token): return 2")
    torch.save(importlib.import_module("oldwords").Words(), tmp_path / "source_vocab.pt")
    with pytest.raises(pickle.UnpicklingError) as caught:
        handler.initialize(context)
    text = str(caught.value)
    assert text.startswith("No model weights could be loaded: 'source_vocab.pt' is refused because it asks for")
    assert "Save the vocabulary as a plain dict of token and index instead" in text
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in text

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        handler.initialize(context)
    assert ask(handler, context, "good") == ["blame"]


def test_unknown_word_without_a_place_in_the_vocabulary(classifier: Any) -> None:
    handler, context = classifier()
    del handler.source_vocab["<unk>"]
    with pytest.raises(KeyError, match="house"):
        ask(handler, context, "house")


@pytest.mark.parametrize("source", [BAG, WORDS])
def test_explanation_says_which_words_count(classifier: Any, source: str) -> None:
    handler, context = classifier(source, explain="True")
    (answer,) = handler.handle([{"body": "it is good"}], context)
    assert answer["words"] == ["it", "is", "good", "it is", "is good"]
    assert answer["importances"] == pytest.approx([0, 0, 1, 0, 0], abs=1e-6)
    (answer,) = handler.handle([{"body": "it is not good", "target": "1"}], context)
    counts = dict(zip(answer["words"], answer["importances"], strict=True))
    assert max(counts, key=counts.get) == "not good"
    assert counts["not"] > 0 == counts["it"]


def test_explanations_of_a_batch(classifier: Any) -> None:
    handler, context = classifier(size=3, explain="True")
    answers = handler.handle([{"body": "good it"}, {"body": ""}, {"body": "is good"}], context)
    assert [answer["words"] for answer in answers] == [["good", "it", "good it"], [], ["is", "good", "is good"]]
    assert [answer["importances"] for answer in answers] == [[1, 0, 0], [], [0, 1, 0]]


def test_explanation_needs_an_embedding(classifier: Any) -> None:
    handler, context = classifier(BAG.replace("self.embedding", "self.table"), explain="True")
    with pytest.raises(NotImplementedError, match=r"attribute `embedding`.*Bag has none"):
        handler.handle([{"body": "good"}], context)


class Words(TextHandler):
    """As handlers are written that load nothing."""

    def initialize(self, context: Any) -> None:
        self.initialized = True


def test_a_subclass_may_load_nothing() -> None:
    handler = Words()
    handler.initialize(None)
    assert handler._tokenize("It's ONE, two") == ["it", "'", "s", "one", ",", "two"]
    assert (handler.input_text, handler.source_vocab) == (None, None)


def test_another_tokenizer_counts(classifier: Any) -> None:
    handler, context = classifier()
    handler.tokenizer = lambda text: ["bad"]
    assert ask(handler, context, "good") == ["blame"]

    class ByLine(Words):
        tokenizer = staticmethod(str.splitlines)

    assert ByLine()._tokenize("One two\nthree") == ["One two", "three"]


@pytest.mark.parametrize("ids", [torch.tensor([[2, 0, 1], [1, 1, 1]]), [[2, 0, 1]], [2, 0, 1]])
def test_tokens_of_numbers_have_no_marks(ids: Any) -> None:
    class Tokenizer:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [["\u0120good", "\u2581day", "un"][number] for number in ids]

    assert Words().get_word_token(ids, Tokenizer()) == ["un", "good", "day"]


def test_attributions_become_one_number_a_token() -> None:
    attributions = torch.tensor([[1.0, 2.0], [-1.0, -3.0]])
    assert Words().summarize_attributions(attributions).tolist() == pytest.approx([0.6, -0.8])
    assert Words().summarize_attributions(attributions[None]).tolist() == pytest.approx([0.6, -0.8])
    assert Words().summarize_attributions(attributions[:1]).tolist() == [1]
    assert Words().summarize_attributions(torch.zeros(2, 2)).tolist() == [0, 0]
