"""Are the words that the prompt puts in quotes written in the picture, letter by letter?

Source: the text-rendering reward of Flow-GRPO (arXiv 2505.05470), 1 - edit distance / length, with RapidOCR instead of
PaddleOCR and rapidfuzz's normalised edit distance.
Range: 0 to 1. Licence of the weights: Apache-2.0 (PP-OCR, converted); they come with the package `rapidocr`; nothing
is downloaded. Memory: 33 MB of files, under 1 GB while it reads; CPU.
Cannot judge: handwriting, tiny or bent letters well; what the words are written on; blanks, which do not count. With
`match: anywhere` a picture covered with letters is paid a little for each that happens to fit: evaluate with `exact`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from r3_rl.errors import MissingPackageError
from r3_rl.scoring.base import ScorerInfo

_PAIRS = ("“”", "„“", "«»", "‹›", "「」", "『』", "＂＂")
# An inch mark follows a digit. A single quote is an apostrophe as well: it opens where no letter is before it, and no
# decade and no shortened word after it, and closes where no letter follows.
_SHORTENED = r"n\b|\d0s\b(?!['’])|(?:em|til|[Tt]is|[Tt]was|cause|bout)\b(?!['’])"
_QUOTED = re.compile(
    "|".join(
        [
            r'(?<!\d)"([^"]*)"',
            *(f"{opens}([^{opens}{closes}]*){closes}" for opens, closes in _PAIRS),
            rf"(?<!\w)['‘](?!{_SHORTENED})(.+?)['’](?!\w)",
        ]
    )
)


class OcrText:
    """score = mean over the texts asked for of 1 - d(text, found) / max(length of both), d the edit distance.

    With `match: anywhere` the text is compared with the stretch of everything read that is most like it, and other
    words in the picture cost nothing; with `exact` all texts asked for, in order, are compared with everything read,
    top to bottom. Case and blanks do not count.

    A text in a script that the reader's model has no letters for (Cyrillic, Arabic, Hangul) gives None with that cause.
    What is asked for stands in the prompt between quotes, or in the data set's `column` (a text or a list of texts).
    A prompt without quotes gives None, which is a missing score; a row without the column does not apply and is not
    missing, so mixed data sets should have the column. Raises `MissingPackageError` when built.
    """

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        version="2",
        deterministic=True,
        weights_licence="Apache-2.0 (PP-OCR)",
        thread_safe=False,  # the reader keeps the settings of the call on itself
        memory="under 1 GB, CPU",
        packages=("onnxruntime", "rapidfuzz", "rapidocr"),
        install="pip install 'r3-rl[rewards]'",
    )

    def __init__(
        self, *, column: str = "", match: Literal["anywhere", "exact"] = "anywhere", num_threads: int = 2
    ) -> None:
        self._column, self._match = column, match
        self.info = self.info_for({"column": column})
        try:
            import onnxruntime  # noqa: F401  rapidocr says so only at its first picture
            import rapidfuzz  # noqa: F401
            from rapidocr import RapidOCR
        except ImportError as error:
            raise MissingPackageError(f"ocr_text needs {error.name}", hint="pip install 'r3-rl[rewards]'") from error
        settings = {
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        self._reader = RapidOCR(params=settings)
        self._alphabet: frozenset[str] | None = None

    @classmethod
    def info_for(cls, params: Mapping[str, Any]) -> ScorerInfo:
        """What it declares with these parameters, which may name a column."""
        column = params.get("column")
        return replace(cls.info, needs=("images", column)) if column else cls.info

    def __call__(self, prompts: list[str], images: list[Any], *, log_extra=None, **columns: Any) -> list[float | None]:
        """Score each image, uint8 [H, W, 3]."""
        asked = [self._asked(prompt, columns, row) for row, prompt in enumerate(prompts)]
        causes = [self._cause(texts) for texts in asked]
        asked = [[] if cause else texts for texts, cause in zip(asked, causes, strict=True)]
        read = [self._read(image) if texts else "" for image, texts in zip(images, asked, strict=True)]
        if log_extra is not None:
            log_extra("reason", [f"reads {text!r}" if texts else "" for text, texts in zip(read, asked, strict=True)])
            log_extra("cause", causes)
        return [likeness(texts, text, self._match) if texts else None for texts, text in zip(asked, read, strict=True)]

    def _asked(self, prompt: str, columns: Mapping[str, Any], row: int) -> list[str]:
        if not self._column:
            return quoted(prompt)
        value = columns[self._column][row]
        return [text for text in ([value] if isinstance(value, str) else value) if _letters(text)]

    def _cause(self, texts: Sequence[str]) -> str:
        """Why there is no score: a right picture would read wrong where the reader's model lacks a letter."""
        if not texts:
            return "no text is asked for"
        known = self._letters_known()
        strange = [letter for text in texts for letter in _letters(text) if letter.isalpha()]
        strange = [letter for letter in strange if known and not known & {letter, letter.upper()}]
        script = unicodedata.name(strange[0], "such").split()[0].capitalize() if strange else ""
        return f"the reader has no {script} letters, such as {strange[0]!r}" if strange else ""

    def _letters_known(self) -> frozenset[str]:
        """The letters of the model that reads lines; it is loaded with its first line."""
        if self._alphabet is None:
            import numpy as np

            blank = np.full((48, 320, 3), 255, np.uint8)
            self._reader(blank, use_det=False, use_cls=False, use_rec=True)
            self._alphabet = frozenset(self._reader.text_rec.postprocess_op.character)
            self._reader.update_params(use_det=True, use_cls=True, use_rec=True)  # it keeps the settings of a call
        return self._alphabet

    def _read(self, image: Any) -> str:
        found = self._reader(image[..., ::-1])  # arrays are taken for blue, green, red
        return " ".join(found.txts or ())


def quoted(prompt: str) -> list[str]:
    """Return what stands between quotes, in order; an apostrophe quotes nothing.

    >>> quoted("the dog's sign says 'Don't stop' and a mug says \\"HI\\"")
    ["Don't stop", 'HI']
    """
    texts = (next(filter(None, match.groups()), "") for match in _QUOTED.finditer(prompt))
    return [text for text in texts if _letters(text)]


def likeness(asked: Sequence[str], read: str, match: Literal["anywhere", "exact"]) -> float:
    """Return how like the texts asked for are to what was read, 0 to 1; case and blanks do not count.

    >>> likeness(["Hello"], "big hallo there", "anywhere"), likeness(["ab"], "ABCD", "exact")
    (0.8, 0.5)
    """
    from rapidfuzz.distance import Levenshtein

    found, wanted = _letters(read), [_letters(text) for text in asked]
    if match == "exact":
        return float(Levenshtein.normalized_similarity("".join(wanted), found))
    return sum(_best(text, found) for text in wanted) / len(wanted)


def _best(text: str, found: str) -> float:
    from rapidfuzz import fuzz
    from rapidfuzz.distance import Levenshtein

    whole = float(Levenshtein.normalized_similarity(text, found))
    if len(found) <= len(text):
        return whole
    stretch = fuzz.partial_ratio_alignment(text, found)
    assert stretch is not None  # only a score cut-off gives None
    part = found[stretch.dest_start : stretch.dest_end]
    return max(whole, float(Levenshtein.normalized_similarity(text, part)))


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
