"""Short forms of English and what they stand for; ambiguous ones get their commoner reading."""

from __future__ import annotations

_WITH_NOT = [  # + n't
    *("are", "could", "dare", "did", "do", "does", "had", "has", "have", "is"),
    *("may", "might", "must", "need", "ought", "should", "was", "were", "would"),
]
_IRREGULAR = {
    "ain't": "is not",
    "can't": "cannot",
    "can't've": "cannot have",
    "won't": "will not",
    "won't've": "will not have",
    "shan't": "shall not",
    "sha'n't": "shall not",
    "shan't've": "shall not have",
    "'cause": "because",
    "'tis": "it is",
    "'twas": "it was",
    "i'm": "i am",
    "i'm'a": "i am about to",
    "let's": "let us",
    "ma'am": "madam",
    "ne'er": "never",
    "e'er": "ever",
    "o'clock": "of the clock",
    "o'er": "over",
    "so's": "so is",
    "so've": "so have",
    "that'd": "that would",
    "that'd've": "that would have",
    "y'all": "you all",
    "y'all'd": "you all would",
    "y'all'd've": "you all would have",
    "y'all're": "you all are",
    "y'all've": "you all have",
}
_SUBJECTS = ["i", "you", "he", "she", "it", "we", "they", "there", "who", "what", "this", "these", "those"]
_ASKING = ["how", "what", "when", "where", "who", "why", "that", "there", "here", "he", "she", "it", "this"]  # + 's
_ENDINGS = {
    "'d": " would",
    "'d've": " would have",
    "'ll": " will",
    "'ll've": " will have",
    "'ve": " have",
}
_MODALS = ["could", "might", "must", "need", "ought", "should", "would"]

CONTRACTION_MAP: dict[str, str] = {
    **{f"{verb}n't": f"{verb} not" for verb in _WITH_NOT},
    **{f"{verb}n't've": f"{verb} not have" for verb in ("had", *_MODALS)},
    **{f"{verb}'ve": f"{verb} have" for verb in ("to", "may", "why", "when", "where", "will", *_MODALS)},
    **{f"{subject}{ending}": f"{subject}{full}" for subject in _SUBJECTS for ending, full in _ENDINGS.items()},
    **{f"{subject}'re": f"{subject} are" for subject in ("you", "we", "they", "there", "what", "who", "how", "these")},
    **{f"{word}'s": f"{word} is" for word in _ASKING},
    **{f"{word}'d": f"{word} did" for word in ("how", "where", "why")},
    "how'd'y": "how do you",
    "how'll": "how will",
    **_IRREGULAR,
}
