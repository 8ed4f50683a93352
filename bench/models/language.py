"""Language: flair's lemmatizer, an encoder of packed characters and a decoder with attention."""

from __future__ import annotations

import string
from typing import Any

from torch import nn

from bench.models.model import Model, Outputs

# Words and their lemmas: 25 words of 2 to 8 characters.
WORDS = (
    "the children were running through older gardens while several leaves fell slowly onto the wettest stones and "
    "birds were singing in trees beside these houses"
)
PAIRS = (
    "children child, were be, running run, older old, gardens garden, leaves leaf, fell fall, wettest wet, "
    "stones stone, birds bird, singing sing, trees tree, these this, houses house"
)
LEMMAS = dict(pair.split() for pair in PAIRS.split(", "))


def lemmatizer() -> nn.Module:
    from flair.data import Dictionary
    from flair.models import Lemmatizer

    characters = Dictionary()
    for one in string.ascii_letters + string.digits + string.punctuation:
        characters.add_item(one)
    return Lemmatizer(char_dict=characters)  # type: ignore[no-any-return]


def sentences() -> Any:
    from flair.data import Sentence

    sentence = Sentence(WORDS, use_tokenizer=False)
    for token in sentence:
        token.set_label("lemma", LEMMAS.get(token.text, token.text))
    return [sentence]


def lemmatizer_run(model: nn.Module, given: Any) -> Outputs:
    scores, _ = model.forward_pass(given)  # type: ignore[operator]
    return {"scores": scores}


MODELS = (
    Model(
        "flair-lemmatizer",
        "flair",
        "flair.models",
        "language",
        "`Lemmatizer`, packed encoder in both directions and decoder, 2 layers each, H = 256",
        f"the class's defaults; a sentence of {len(WORDS.split())} words is a choice",
        lemmatizer,
        sentences,
        lemmatizer_run,
        ("encoder_rnn", "decoder_rnn"),
    ),
)
