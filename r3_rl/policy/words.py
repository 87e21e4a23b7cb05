"""Words that a model with a closed vocabulary does not know: it would read each of them as the same token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the words of a text that the tokenizer does not know, each once; none if it spells what it does not know.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "red": 1}, unk_token="?"))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> unknown_words(tokenizer, "red zebra red zebra")
    ['zebra']
    """
    stands_for_all = getattr(tokenizer.model, "unk_token", None)
    if stands_for_all is None:
        return []
    control = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    unknown = {stands_for_all, *control}  # a control token is no word, although a vocabulary of words holds it
    read = tokenizer.encode(text, add_special_tokens=False)
    spans = zip(read.tokens, read.offsets, strict=True)
    return list(dict.fromkeys(text[start:end] for token, (start, end) in spans if token in unknown))


def said_unknown(tokenizer: Tokenizer, text: str) -> str:
    """Return what an error says of such words, of five at most; empty if the model knows all of a text.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "red": 1}, unk_token="?"))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> said_unknown(tokenizer, "red zebra"), said_unknown(tokenizer, "red")
    ("the model does not know 'zebra'", '')
    """
    unknown = unknown_words(tokenizer, text)
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return f"the model does not know {', '.join(map(repr, unknown[:5]))}{more}" if unknown else ""
