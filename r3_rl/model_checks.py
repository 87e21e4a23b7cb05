"""What a recipe asks of its model or of the backbone of a new one, from JSON files, before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from r3_rl.errors import CheckpointError
from r3_rl.policy.backbone import GENERATION, Backbone, BackboneSpec, ImageSizes
from r3_rl.policy.hub import is_hub_id
from r3_rl.policy.registry import backbone_of, find, names, pretrained_backbone
from r3_rl.recipe import Recipe
from r3_rl.recipe.drawing import DrawingSection
from r3_rl.recipe.pretraining import MixSection, PretrainSection
from r3_rl.recipe.running import EVERY_BRANCH
from r3_rl.recipe.sampling import COMPACT, RECOGNISED
from r3_rl.recipe.tree import Path, split
from r3_rl.recipe.wording import mistakes_of
from r3_rl.worlds.base import World, find_world


def model_problems(recipe: Recipe, world: World[Any] | None) -> Iterator[tuple[Path, str]]:
    """What a recipe asks of its model in vain; of one that it pretrains, what it asks of its backbone.

    Args:
        recipe: right on its own.
        world: of its data; None if they are a file's.
    """
    canvas = [] if world is None else [*_canvas_problems(recipe.rollout.draft.size, world)]
    brings = recipe.rollout.protocol
    if brings != COMPACT and find(brings).spec.templates is None:
        yield ("rollout", "protocol"), f"the backbone '{brings}' brings no templates; use '{COMPACT}'"
    if recipe.pretrain is not None:  # it makes its model
        yield from _made_model_problems(recipe.pretrain, recipe.model.kind, world)
        yield from canvas
        return
    try:
        backbone = _backbone(recipe, world)
        sizes = _image_sizes(recipe, backbone, world) if backbone else None
    except CheckpointError as error:
        by_name = recipe.model.path is None and recipe.model.base is not None
        yield ("model", "base" if by_name else "path"), str(error)
        return
    if backbone is None:
        return
    yield from _backbone_problems(recipe, backbone.spec)
    if sizes is not None:
        found = [*_size_problems(recipe, sizes)] or canvas
        yield from found or _budget_problems(recipe, backbone.spec, sizes)


def _backbone_problems(recipe: Recipe, spec: BackboneSpec) -> Iterator[tuple[Path, str]]:
    """Branches and layers that the backbone does not have, and what it cannot do with them."""
    lora, own = recipe.lora, ", ".join(spec.branches)
    if lora.enabled and lora.branches not in (EVERY_BRANCH, *spec.branches):
        yield ("lora", "branches"), f"{spec.title} has the branches {own}; use '{EVERY_BRANCH}' for all of them"
    if recipe.balance.routing != "shared" and not spec.can_route:
        yield ("balance", "routing"), f"{spec.title} does not tell tasks apart; use 'shared'"
    if not spec.can_shard:
        yield from _unsharded_problems(recipe, spec)
    if recipe.training.gradient_checkpointing and not spec.can_recompute:
        yield ("training", "gradient_checkpointing"), f"{spec.title} does not compute layers again; set it to false"
    if GENERATION in spec.branches:
        return
    wanted: list[tuple[Path, Any]] = [(("training", "image_learning_rate"), recipe.training.image_learning_rate)]
    if lora.enabled:
        wanted.append((("lora", "rank_generation"), lora.rank_generation))
    if recipe.balance.image_gradients != "all":
        wanted.append((("balance", "image_gradients"), recipe.balance.image_gradients))
    for path, value in wanted:
        if value is not None:
            yield path, f"{spec.title} has no branch of its own for drawing, but {own}; leave it out"


def _unsharded_problems(recipe: Recipe, spec: BackboneSpec) -> Iterator[tuple[Path, str]]:
    """What only shards can do, of a backbone whose layers cannot be sharded."""
    parallel = recipe.training.parallel
    if parallel.kind == "fsdp2":
        yield ("training", "parallel", "kind"), f"the layers of {spec.title} cannot be sharded; use 'ddp'"
    elif recipe.training.shards_weights:
        yield ("training", "deepspeed"), f"the layers of {spec.title} cannot be sharded; use ZeRO 1 or 2"
    elif parallel.kind == "auto" and (parallel.replicate > 1 or parallel.keep_gathered):
        key = "replicate" if parallel.replicate > 1 else "keep_gathered"
        yield (
            ("training", "parallel", key),
            f"it is for shards, and the layers of {spec.title} cannot be sharded; drop it",
        )
    elif recipe.model.dtype == "bfloat16" and not recipe.lora.enabled and recipe.training.deepspeed is None:
        yield (
            ("model", "dtype"),
            f"full weights of 16 bits are trained in shards, and the layers of {spec.title} cannot be sharded; "
            "use 'float32', or train an adapter (lora.enabled)",
        )


def _backbone(recipe: Recipe, world: World[Any] | None) -> Backbone | None:
    """The backbone of the recipe's model; None while nothing says which it is. Raises CheckpointError for a folder that
    is none of ours."""
    model = recipe.model
    if model.path is None or FilePath(model.path).is_dir():
        return backbone_of(model.path or (world or find_world()).weights_folder(model.base), model.kind)
    if model.kind not in RECOGNISED:
        return find(model.kind)
    every = [find(name) for name in names()]
    return next((backbone for backbone in every if model.path in backbone.spec.released), None)


def _image_sizes(recipe: Recipe, backbone: Backbone, world: World[Any] | None) -> ImageSizes | None:
    """The sizes of the recipe's model, of a name on the hub those of the release; None if the folder is missing."""
    path = recipe.model.path
    if path is None or FilePath(path).is_dir():
        folder = FilePath(path) if path else (world or find_world()).weights_folder(recipe.model.base)
        return backbone.sizes(folder)
    return backbone.sizes(None) if is_hub_id(path) else None


def _made_model_problems(pretrain: PretrainSection, kind: str, world: World[Any] | None) -> Iterator[tuple[Path, str]]:
    """Sizes that the backbone of a new model does not have, and those that do not fit the world's images."""
    if pretrain.start is not None and not FilePath(pretrain.start).is_dir():
        return  # said where folders are looked for
    try:
        backbone = pretrained_backbone(kind, pretrain.start)
    except CheckpointError as error:
        yield ("pretrain", "start"), str(error)
        return
    if backbone.spec.refines != "edit":
        for where, batch in [(("batch",), pretrain.batch), *_later_batches(pretrain)]:
            if batch is not None and batch.edit:
                yield ("pretrain", *where, "edit"), f"{backbone.spec.title} does not edit, it regenerates; set it to 0"
    section = backbone.size_section
    try:
        size = section(**pretrain.model)
    except ValidationError as error:
        for path, message in mistakes_of(error, section):
            yield ("pretrain", "model", *path), message
        return
    for problem in backbone.misfits(size, world.image_size) if world else ():
        yield ("pretrain", "model", *split(problem.path)), problem.message


def _later_batches(pretrain: PretrainSection) -> Iterator[tuple[Path, MixSection | None]]:
    for number, leg in enumerate(pretrain.later):
        yield ("later", number, "batch"), leg.batch


def with_sizes(recipe: Recipe) -> Recipe:
    """The recipe with every size of the model that it pretrains, whose defaults are its backbone's."""
    pretrain = recipe.pretrain
    if pretrain is None:
        return recipe
    sizes = pretrained_backbone(recipe.model.kind, pretrain.start).size_section(**pretrain.model)
    filled = pretrain.model_copy(update={"model": sizes.model_dump(mode="json")})
    return recipe.model_copy(update={"pretrain": filled})


def _canvas_problems(size: tuple[int, int], world: World[Any]) -> Iterator[tuple[Path, str]]:
    """Images of another size than the world's."""
    canvas = world.image_size
    if set(size) != {canvas}:
        yield (
            ("rollout", "draft", "size"),
            f"the images of the data '{world.name}' have {canvas} pixels a side; use [{canvas}, {canvas}]",
        )


def _size_problems(recipe: Recipe, sizes: ImageSizes) -> Iterator[tuple[Path, str]]:
    """A side that is not made of whole image tokens would be drawn smaller without a word; one that is too large is
    refused by the first draw."""
    size = recipe.rollout.draft.size
    if wrong := [side for side in size if side != _fitting(side, sizes)[0]]:
        choices = dict.fromkeys(tuple(_fitting(side, sizes)[at] for side in size) for at in (0, 1))
        stride, most = sizes.stride, sizes.largest
        why = f"{wrong[0]} pixels are not a multiple of {stride}" if wrong[0] <= most else f"{wrong[0]} is above {most}"
        shown = " or ".join(f"[{high}, {wide}]" for high, wide in choices)
        yield ("rollout", "draft", "size"), f"{why}, which is what the model draws; use {shown}"


def _fitting(side: int, sizes: ImageSizes) -> tuple[int, int]:
    """The nearest sides that the model draws, from below and from above; twice the same if there is only one."""
    stride, most = sizes.stride, sizes.largest // sizes.stride
    below = min(max(side // stride, 1), most)
    above = min(max(-(-side // stride), 1), most)
    return below * stride, above * stride


def fewest_tokens(recipe: Recipe, spec: BackboneSpec, sizes: ImageSizes) -> dict[str, int]:
    """Count the image tokens that an update reads at least for one segment of each kind that is trained, its context
    included; of an image in the context the fewest that it can have."""
    rollout, schedule = recipe.rollout, recipe.algorithm.schedule
    drawn, look = sizes.drawn_tokens(rollout.draft.size), sizes.look_tokens
    needed: dict[str, int] = {}
    if recipe.algorithm.image_loss_weight > 0 and schedule != "critique_only":
        needed["draft"] = drawn * _num_passes(rollout.draft, spec)
        if schedule in ("tree", "full", "episode", "progressive"):
            redrawn = drawn if spec.refines == "edit" else 0
            needed["refinement"] = redrawn + look + drawn * _num_passes(rollout.refine, spec)
    if recipe.algorithm.text_loss_weight > 0 and schedule != "draft_only":
        needed["critique"] = look
    return needed


def _budget_problems(recipe: Recipe, spec: BackboneSpec, sizes: ImageSizes) -> Iterator[tuple[Path, str]]:
    """A micro-batch holds at least one segment with its context, whatever the budget."""
    needed = fewest_tokens(recipe, spec, sizes)
    if needed and (most := max(needed.values())) > recipe.training.token_budget:
        what = next(name for name, tokens in needed.items() if tokens == most)
        yield (
            ("training", "token_budget"),
            f"{recipe.training.token_budget} is less than one {what}, {most} image tokens and its words; "
            "raise it, or draw smaller images (rollout.draft.size)",
        )


def _num_passes(drawing: DrawingSection, spec: BackboneSpec) -> int:
    """How often an update reads a drawn image: once a scored denoising step."""
    if spec.draws == "tokens":
        return 1
    return drawing.num_possible if drawing.window == "all" else drawing.num_sde_steps
