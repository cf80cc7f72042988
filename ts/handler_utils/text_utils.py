"""Text to tokens, and tokens to n-grams, as text classifiers are trained with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ts.torch_handler._optional import needed

Tokenizer = Callable[[str], list[str]]

_ALONE = re.compile(r"['.,()!?]")
_SPACE = re.compile(r"<br\s*/?>|[;:]")
_SPACY_MODELS = {"en": "en_core_web_sm", "de": "de_core_news_sm"}


def get_tokenizer(tokenizer: str | Tokenizer | None, language: str = "en") -> Tokenizer:
    """A function of a text that gives its tokens.

    None splits at white space; `basic_english` also lowers the case and parts punctuation from words; a function is
    taken as it is.  `spacy` needs that package, asked for by a ModuleNotFoundError.  Raises ValueError for any other
    name, and for `basic_english` in another language.
    """
    if tokenizer is None:
        return str.split
    if callable(tokenizer):
        return tokenizer
    if tokenizer == "basic_english":
        if language != "en":
            raise ValueError(f"basic_english is for the language 'en', not {language!r}.")
        return _basic_english
    if tokenizer == "spacy":
        return _spacy(language)
    raise ValueError(f"There is no tokenizer {tokenizer!r}; there are basic_english, spacy, or a function.")


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """The tokens, then each run of 2, of 3 … of `ngrams` tokens, joined by spaces."""
    for size in range(1, max(1, ngrams) + 1):
        for start in range(len(token_list) - size + 1):
            yield " ".join(token_list[start : start + size])


def _basic_english(text: str) -> list[str]:
    plain = _SPACE.sub(" ", text.lower()).replace('"', "")
    return _ALONE.sub(lambda mark: f" {mark[0]} ", plain).split()


def _spacy(language: str) -> Tokenizer:
    spacy = needed("spacy", "spacy", "The tokenizer 'spacy' splits text")
    pipeline = spacy.load(_SPACY_MODELS.get(language, language))
    return lambda text: [token.text for token in pipeline.tokenizer(text)]
