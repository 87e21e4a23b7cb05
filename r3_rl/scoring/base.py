"""What a scorer is: a TRL reward function that may also look at images.

A scorer is called with keywords only and gets the arguments that its signature names (all of them with `**columns`):

    def score(prompts, completions, images, *, draft_images=None, critiques=None,
              log_metric=None, log_extra=None, **columns) -> list[float | None]

* `prompts`      list[str], the words shown to the policy
* `completions`  list[str], the text that is judged (plan or critique); "" where an image alone is judged
* `completion_ids` list of lists of token ids, for rewards that count tokens; None where the caller has none
* `images`       list of uint8 arrays [H, W, 3]; None when texts alone are judged
* `draft_images` like `images`: the image that was looked at before `images` were drawn; None for drafts
* `critiques`    list[str], the critique behind each image; None for drafts
* `trainer_state` how far the run is: `.global_step` and `.max_steps`, as TRL hands its own
* `log_metric`   `log_metric(name, value)`: a number for the metrics
* `log_extra`    `log_extra(name, values)`: one value for each sample; `"reason"` holds the words of the verdict,
                 `"cause"` why a score is None
* `columns`      the data set's own columns, a list with one value for each sample

It returns one number for each sample; None says "no score", which is never the same as 0. A sample that lacks something
in `info.needs` is not handed to the scorer at all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from r3_rl.torchvision_guard import is_installed

_NOT_IN_EVERY_BATCH = ("images", "draft_images", "critiques", "completion_ids")


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is, for rewards that change with it; outside of a run both are 0."""

    global_step: int = 0
    """Steps of the optimiser that are done."""
    max_steps: int = 0
    """Steps that the run shall have."""


@dataclass(frozen=True, kw_only=True)
class ScorerInfo:
    """What a scorer declares about itself; the defaults are those of a plain TRL reward function.

    >>> ScorerInfo(range=(0.0, 1.0), needs=("images",)).version
    '1'
    """

    range: tuple[float, float] | None = None
    """Smallest and largest score, both included; None leaves the range unchecked."""
    needs: tuple[str, ...] = ()
    """Arguments or columns without which a sample has no score: `images`, `completions`, `draft_images`, a column."""
    version: str = "1"
    """Changes whenever the same input may get another score; part of the cache key."""
    deterministic: bool = False
    """True when the same input always gets the same score: such scores are cached."""
    weights_licence: str = ""
    """Licence of the weights that are loaded; empty when there are none."""
    thread_safe: bool = True
    """False when two calls may not run at once."""
    group_wise: bool = False
    """True when the score of a sample depends on its peers: the call then holds exactly one group."""
    memory: str = ""
    """What it takes up in words, such as `1.7 GB on the GPU`."""
    conversational: bool = False
    """True when `prompts` and `completions` are wanted as lists of messages, as conversational TRL rewards do."""
    packages: tuple[str, ...] = ()
    """Optional packages that it imports once built or called, as `import` names them; `r3 check` looks for them."""
    install: str = ""
    """The line that installs them, such as `pip install 'r3-rl[clip]'`."""

    def __post_init__(self) -> None:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"ScorerInfo.range must be (low, high) with low < high, not {self.range}")
        for name in ("needs", "packages"):
            if isinstance(value := getattr(self, name), str):
                raise ValueError(f"ScorerInfo.{name} must be a tuple of names; write ({value!r},)")


class Scorer(Protocol):
    """A function or an instance that scores a batch; see the module's first lines for the arguments."""

    def __call__(self, **arguments: Any) -> Sequence[float | None] | Awaitable[Sequence[float | None]]:
        """Return one score for each sample, None where there is none."""


_Function = TypeVar("_Function", bound=Callable[..., Any])


def scorer_info(**fields: Any) -> Callable[[_Function], _Function]:
    """Declare a function's `ScorerInfo`; the fields are those of the class.

    >>> @scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
    ... def brightness(images, **columns):
    ...     return [float(image.mean()) / 255 for image in images]
    >>> info_of(brightness).range
    (0.0, 1.0)
    """
    info = ScorerInfo(**fields)

    def attach(function: _Function) -> _Function:
        function.info = info  # type: ignore[attr-defined]
        return function

    return attach


def info_of(scorer: Any) -> ScorerInfo:
    """Return what a scorer declares, or the defaults of a plain reward function.

    Without a declaration `needs` holds what the signature demands of images and critiques, and `conversational` is read
    from the annotation of `completions`: TRL's own conversational rewards are annotated `list[list[dict[str, str]]]`.

    >>> def plain(completions, **kwargs): ...
    >>> info_of(plain).needs
    ()
    """
    if isinstance(scorer, functools.partial):  # a partial hides the attributes of what it binds
        return info_of(scorer.func)
    declared = getattr(scorer, "info", None)
    if isinstance(declared, ScorerInfo):
        return declared
    if declared is not None:
        raise TypeError(f"{scorer!r}: `info` must be a ScorerInfo, not {type(declared).__name__}")
    parameters = call_parameters(scorer)
    demanded = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    completions = parameters.get("completions")
    annotation = "" if completions is None else _annotation_text(completions.annotation)
    return ScorerInfo(
        needs=tuple(name for name in demanded if name in _NOT_IN_EVERY_BATCH),
        conversational=annotation.lower().startswith(("list[list", "sequence[list")),
    )


def declared_info(scorer: Any, params: Mapping[str, Any]) -> ScorerInfo:
    """Return what a scorer that is not built yet declares about itself with these parameters.

    A class whose columns or packages depend on its parameters has a static method `info_for(params) -> ScorerInfo`; for
    every other scorer it is `info_of`.
    """
    told = getattr(scorer, "info_for", None)
    return told(params) if callable(told) else info_of(scorer)


def missing_packages(info: ScorerInfo) -> list[str]:
    """Return the declared packages that are not installed; nothing is imported.

    >>> missing_packages(ScorerInfo(packages=("json", "no_such_package")))
    ['no_such_package']
    """
    return [name for name in info.packages if not is_installed(name)]


def call_parameters(scorer: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters that a call of the scorer takes, without `self` and without those already bound.

    >>> list(call_parameters(lambda completions, images=None: []))
    ['completions', 'images']
    >>> list(call_parameters(functools.partial(lambda images, quality: [], quality=9)))
    ['images']
    """
    if inspect.isclass(scorer):
        parameters = list(inspect.signature(scorer.__call__).parameters.values())[1:]
        return {parameter.name: parameter for parameter in parameters}
    bound = scorer.keywords if isinstance(scorer, functools.partial) else {}
    parameters_by_name = inspect.signature(scorer).parameters
    return {name: parameter for name, parameter in parameters_by_name.items() if name not in bound}


def accepted_arguments(scorer: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of the offered keywords those that the scorer's signature names; all of them when it takes `**kwargs`.

    >>> sorted(accepted_arguments(lambda completions: [], {"completions": ["a"], "images": None}))
    ['completions']
    """
    bound = scorer.keywords if isinstance(scorer, functools.partial) else {}
    parameters = call_parameters(scorer)
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in offered.items() if (takes_all or name in parameters) and name not in bound}


def _annotation_text(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else str(annotation)
    return text.replace("typing.", "").replace(" ", "")
