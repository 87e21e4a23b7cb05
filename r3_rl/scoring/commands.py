"""What stands behind `r3 rewards ls`, `new` and `test`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3_rl.errors import DataError, InputError
from r3_rl.pixels import flat_rgb
from r3_rl.scoring.base import info_of
from r3_rl.scoring.registry import ScorerEntry, list_scorers, load_scorer, short_name
from r3_rl.types import STANDARD_ARGUMENTS

if TYPE_CHECKING:
    from r3_rl.scoring.batch import Image
    from r3_rl.types import Verdict

_MAX_PIXELS = 64_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def ls() -> None:
    """Print every installed scorer: name, version, range, needs, licence of its weights, origin."""
    entries = list_scorers()
    header = ("name", "version", "range", "needs", "weights", "from")
    rows = [header, *(_row(entry) for entry in entries if entry.info is not None)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for entry in entries:
        if entry.error:
            print(f"{entry.name} (from {entry.origin}) fails to import: {entry.error}")


def _row(entry: ScorerEntry) -> tuple[str, ...]:
    assert entry.info is not None
    info = entry.info
    span = "any" if info.range is None else f"{info.range[0]:g} to {info.range[1]:g}"
    return entry.name, info.version, span, ", ".join(info.needs) or "-", info.weights_licence or "none", entry.origin


def new(name: str, folder: str | Path = ".") -> list[Path]:
    """Write `NAME.py`, a scorer that works, and `test_NAME.py`, a test that passes; existing files are left alone.

    Raises `InputError` when the name is no Python name or a file is there already.
    """
    if not name.isidentifier() or name.startswith("test_"):
        raise InputError(
            f"'{name}' cannot be the name of a function", hint="use letters, digits and _, as in 'my_score'"
        )
    folder = Path(folder)
    files = {folder / f"{name}.py": _SCORER, folder / f"test_{name}.py": _TEST}
    for path in files:
        if path.exists():
            raise InputError(f"{path} is there already", hint="choose another name or folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text.replace("NAME", name), encoding="utf-8")
        print(f"wrote {path}")
    print(f"try it:    r3 rewards test {folder / name}.py:{name} IMAGE.png --prompt 'a red circle'")
    print(f"test it:   pytest {folder / f'test_{name}.py'}")
    print(f"train it:  rewards: [{{scorer: ./{name}.py:{name}}}]   in a recipe in this folder")
    return list(files)


def test(
    scorer: str,
    paths: Sequence[str | Path] = (),
    *,
    prompt: str = "",
    text: str | None = None,
    params: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    base_folder: str | Path = ".",
) -> list[Verdict]:
    """Score images (files, or the images of a folder) or a text, and print scores and time; two images show the gain.

    With two images the first is the draft of the second. Raises `InputError` for a wrong name, parameter or file, and
    `ScorerError` when the scorer fails.
    """
    from r3_rl.scoring.batch import ScoreBatch
    from r3_rl.scoring.panel import Panel, ScorerSpec
    from r3_rl.types import Prompt

    files = _image_files(paths)
    if not files and text is None:
        raise InputError("nothing to score", hint="give an image, a folder of images, or a text")
    images = [read_image(file) for file in files]
    start = time.perf_counter()
    spec = ScorerSpec(name=short_name(scorer), scorer=load_scorer(scorer, params, base_folder))
    loaded = time.perf_counter()
    absent = [need for need in info_of(spec.scorer).needs if need not in (*STANDARD_ARGUMENTS, *(columns or {}))]
    if absent:
        raise InputError(
            f"scorer '{spec.name}' needs the column{'s' * (len(absent) > 1)} {', '.join(absent)}",
            hint=f"say it as in a row of the data set: --columns '{{{absent[0]}: ...}}'",
        )
    count = max(1, len(images))
    batch = ScoreBatch(
        prompts=[Prompt(text=prompt, columns=dict(columns or {}))] * count,
        images=images or None,
        texts=None if text is None else [text] * count,
        draft_images=[None, images[0]] if len(images) == 2 else None,
        groups=[0] * count,
    )
    with Panel([spec], max_failed_fraction=0.0) as panel:
        verdicts = panel.score(batch)
        metrics = panel.metrics()
        panel.prove()
    score_s = metrics[f"rewards/{spec.name}/time_s"]
    _print_verdicts([str(file) for file in files] or ["text"], verdicts, spec.name)
    print(f"loaded in {loaded - start:.3f} s, scored {count} in {score_s:.3f} s ({count / max(score_s, 1e-9):.1f}/s)")
    return verdicts


test.__test__ = False  # type: ignore[attr-defined]


def _print_verdicts(labels: list[str], verdicts: Sequence[Verdict], name: str) -> None:
    width = max(len(label) for label in labels)
    scores = [verdict.scores[name] for verdict in verdicts]
    for label, verdict, score in zip(labels, verdicts, scores, strict=True):
        shown = "does not apply" if score is None else f"{score:.6g}"
        print(f"{label.ljust(width)}  {shown}  {verdict.words}".rstrip())
    if len(scores) == 2 and scores[0] is not None and scores[1] is not None:
        print(f"{'gain'.ljust(width)}  {scores[1] - scores[0]:+.6g}")


def _image_files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if _is_image(file))
        if not found:
            raise DataError(f"{path}: no image in this folder", hint=f"looked for {', '.join(_SUFFIXES)}")
        files += found
    return files


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")  # a Mac leaves `._a.png` beside `a.png`


def read_image(path: str | Path) -> Image:
    """Read an image file as uint8 [H, W, 3], turned as it is shown and over white where it is transparent.

    Raises `DataError` for what is no image or has over 64 million pixels.
    """
    import warnings

    import numpy as np
    from PIL import Image as Pictures
    from PIL import ImageOps

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit that counts is ours, which is lower than Pillow's
            with Pictures.open(path) as picture:
                width, height = picture.size
                if width * height > _MAX_PIXELS:  # before the pixels are read: a small file may claim any size
                    raise DataError(f"{path}: {width} x {height} pixels are more than {_MAX_PIXELS:,} in all")
                return np.asarray(flat_rgb(ImageOps.exif_transpose(picture)))
    except DataError:
        raise
    except Pictures.DecompressionBombError:
        raise DataError(f"{path}: more than {_MAX_PIXELS:,} pixels in all") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not an image that can be read") from error


_SCORER = '''"""NAME: how much of the image is red, an example to replace by a score of your own."""

from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 1.0), needs=("images",), version="1", deterministic=True)
def NAME(prompts, images, *, threshold: float = 0.5, log_metric=None, log_extra=None, **columns):
    """Return one number for each image, or None where there is no score.

    `images` are uint8 arrays [height, width, 3]; `columns` holds the columns of your data set, one entry for each
    image. `threshold` is a parameter of yours: set it under `params` in the recipe. What you give to `log_metric`
    becomes a curve, and what you give to `log_extra("reason", [...])` stands beside the image in the report.
    """
    scores, reasons = [], []
    for image in images:
        red, green, blue = (image[..., channel] / 255.0 for channel in range(3))
        is_red = (red > threshold) & (red > green + 0.2) & (red > blue + 0.2)
        scores.append(float(is_red.mean()))
        reasons.append(f"{100 * scores[-1]:.0f} % red")
    if log_extra:
        log_extra("reason", reasons)
    return scores
'''

_TEST = '''"""What NAME promises: a red picture scores 1, a blue one 0, and one number comes back for each image."""

import numpy as np
from NAME import NAME


def picture(red, green, blue):
    return np.full((8, 8, 3), (red, green, blue), dtype=np.uint8)


def test_red_is_one_and_blue_is_zero():
    images = [picture(255, 0, 0), picture(0, 0, 255)]
    assert NAME(prompts=["a red circle"] * 2, images=images) == [1.0, 0.0]


def test_the_threshold_is_used():
    dark_red = [picture(100, 0, 0)]
    assert NAME(prompts=["a red circle"], images=dark_red, threshold=0.5) == [0.0]
    assert NAME(prompts=["a red circle"], images=dark_red, threshold=0.3) == [1.0]
'''
