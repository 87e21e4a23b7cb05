"""The arms of a study: what each changes in one recipe, so that two of them differ in nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r3_rl.errors import InputError
from r3_rl.importing import closest
from r3_rl.recipe.branching import BranchSection
from r3_rl.recipe_io import shipped_recipes


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str
    label: str
    """In tables and figures."""
    settings: tuple[str, ...] = ()
    """Overrides of the study's recipe, `key=value`: one key in each arm, none in the recipe itself."""
    branch: Callable[[BranchSection], dict[str, int]] | None = None
    """Makes the one key of an arm that branches in another way out of the recipe's own `rollout.branch`."""
    recipe: str | None = None
    """A recipe of its own, which takes the place of the study's."""
    merges: tuple[tuple[str, float], ...] = ()
    """Arms with the same seed whose adapters, so weighted, are added up; the sum is measured and not trained."""

    def overrides(self, branch: BranchSection) -> tuple[str, ...]:
        """Return the settings of this arm of a recipe that branches so.

        >>> ARMS["one_to_one"].overrides(BranchSection(plan=1, draft=16, critique=4))
        ('rollout.branch={plan: 16, draft: 1, critique: 4, refinement: 1}',)
        """
        if self.branch is None:
            return self.settings
        children = ", ".join(f"{stage}: {count}" for stage, count in self.branch(branch).items())
        return (*self.settings, f"rollout.branch={{{children}}}")


def _one_to_one(b: BranchSection) -> dict[str, int]:
    return {"plan": b.plan * b.draft, "draft": 1, "critique": b.critique * b.refinement, "refinement": 1}


def _refined_twice(b: BranchSection) -> dict[str, int]:
    critiques = max(b.critique * b.refinement // 2, 1)
    return {"plan": b.plan, "draft": b.draft, "critique": critiques, "refinement": 2}


R3 = "r3"
_ARMS = (
    Arm(name=R3, label="R3"),
    Arm(name="draft_only", label="Generation only", settings=("algorithm.schedule=draft_only",)),
    Arm(name="critique_only", label="Critiques only", settings=("algorithm.schedule=critique_only",)),
    Arm(name="answer_only", label="Answers only", settings=("algorithm.answer_share=1.0",)),
    Arm(name="cotrain", label="Naive co-training", settings=("algorithm.schedule=cotrain",)),
    Arm(name="episode", label="R3, one advantage a trajectory", settings=("algorithm.schedule=episode",)),
    Arm(name="progressive", label="R3, apart, then joint", settings=("algorithm.schedule=progressive",)),
    Arm(name="answers", label="R3 and answers", settings=("algorithm.answer_share=0.25",)),
    Arm(name="text_only", label="R3, texts alone learn", settings=("algorithm.frozen_stages=[draft, refinement]",)),
    Arm(name="flow_only", label="R3, images alone learn", settings=("algorithm.frozen_stages=[plan, critique]",)),
    Arm(name="frozen_critic", label="R3, frozen critic", settings=("algorithm.frozen_stages=[critique]",)),
    Arm(name="one_to_one", label="R3, one image a plan", branch=_one_to_one),
    Arm(name="refined_twice", label="R3, two refinements a critique", branch=_refined_twice),
    Arm(name="pcgrad", label="R3, PCGrad", settings=("balance.aggregator=pcgrad",)),
    Arm(name="cagrad", label="R3, CAGrad", settings=("balance.aggregator=cagrad",)),
    Arm(name="upgrad", label="R3, UPGrad", settings=("balance.aggregator=upgrad",)),
    Arm(name="config", label="R3, ConFIG", settings=("balance.aggregator=config",)),
    Arm(name="equal_norms", label="R3, equal norms", settings=("balance.aggregator=equal_norms",)),
    Arm(name="split", label="R3, an adapter a stage", settings=("balance.routing=split",)),
    Arm(name="routed", label="R3, routed adapters", settings=("balance.routing=routed",)),
    Arm(
        name="images_apart",
        label="R3, images teach the drawing expert alone",
        settings=("balance.image_gradients=generation",),
    ),
    Arm(
        name="taught_drawing",
        label="Generation only, supervised",
        settings=("algorithm.supervised={text_to_image: 128}",),
    ),
    Arm(
        name="taught_reading",
        label="Understanding only, supervised",
        settings=("algorithm.supervised={critique: 64, question: 64}",),
    ),
    Arm(
        name="merged",
        label="Generation + critiques, merged",
        settings=("training.max_steps=0",),
        merges=(("draft_only", 1.0), ("critique_only", 1.0)),
    ),
    Arm(
        name="averaged",
        label="Generation and critiques, averaged",
        settings=("training.max_steps=0",),
        merges=(("draft_only", 0.5), ("critique_only", 0.5)),
    ),
    Arm(name="coin", label="R3, a coin for a reward", settings=("rewards=[{scorer: random_reward}]",)),
)
ARMS = {arm.name: arm for arm in _ARMS}
GROUPS = {
    "main": (R3, "draft_only", "critique_only", "cotrain"),
    "heads": (R3, "text_only", "flow_only", "frozen_critic"),
    "credit": (R3, "one_to_one", "refined_twice", "episode"),
    "apart": (R3, "draft_only", "critique_only", "taught_drawing", "taught_reading", "merged", "averaged"),
    "routing": (R3, "split", "routed"),
    "coordination": (R3, "pcgrad", "cagrad", "upgrad", "config", "equal_norms"),
    "all": tuple(ARMS),
}


def find_arms(names: Sequence[str]) -> list[Arm]:
    """Arms by name, each once.

    Args:
        names: of arms, of groups of arms (`main`), or of recipes: a file `./mine.yaml`, or a shipped one, which are
            arms of their own with every setting that they have. An arm that merges others brings them along.

    Raises:
        InputError: a name that is none of these, or no name at all.

    >>> [arm.name for arm in find_arms(["heads", "coin"])]
    ['r3', 'text_only', 'flow_only', 'frozen_critic', 'coin']
    >>> [arm.name for arm in find_arms(["merged"])]
    ['draft_only', 'critique_only', 'merged']
    """
    found: dict[str, Arm] = {}
    for name in names:
        for member in GROUPS.get(name, (name,)):
            arm = ARMS.get(member) or _of_recipe(member)
            for part, _ in arm.merges:
                found.setdefault(part, ARMS[part])
            if found.setdefault(arm.name, arm) != arm:
                raise InputError(f"two arms are called '{arm.name}'", hint="give the recipe's file another name")
    if not found:
        raise InputError("no arm is named", hint=f"groups: {', '.join(GROUPS)}; arms: {', '.join(ARMS)}")
    return list(found.values())


def _of_recipe(name: str) -> Arm:
    """A recipe's file or name as an arm."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or name in shipped_recipes():
        return Arm(name=path.stem, label=path.stem.replace("_", " "), recipe=name)
    raise InputError(f"no arm '{name}', and no recipe of that name", hint=closest(name, [*ARMS, *GROUPS]))
