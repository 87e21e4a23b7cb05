"""What every backbone has to pass: those that are registered, and a toy one that is nothing like them."""

from __future__ import annotations

import gc
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from r3_rl import registered
from r3_rl.errors import InputError, RunError
from r3_rl.export import export
from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import ImagePiece, ImageTokenSegment, TextPiece
from r3_rl.model_checks import fewest_tokens
from r3_rl.nodes import given_image
from r3_rl.policy import adapters
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.backbone import branch_of
from r3_rl.policy.base import Drawing, Example, Sampling, SupervisedNoise
from r3_rl.policy.registry import backbone_of, find, names
from r3_rl.recipe import Recipe
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Prompt
from tests.policy.installed import install_toy
from tests.policy.tiny import AnyWords

EVERY = [*registered.BUILT_IN[registered.BACKBONES], "toy"]
PROMPTS = [Prompt(text="a red circle"), Prompt(text="two blue and green square left of a red cross")]
ADAPTER = AdapterSettings(rank=2, alpha=4.0)
GUIDANCE = {"plain": Guidance(), "guided": Guidance(text=3.0, image=1.5, interval=(0.4, 1.0))}


@pytest.fixture(autouse=True)
def _toy_is_installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_toy(tmp_path))


@pytest.fixture(params=EVERY)
def backbone(request):
    return find(request.param)


@pytest.fixture
def folder(backbone, tmp_path):
    return backbone.write_tiny(tmp_path / "weights")


@pytest.fixture
def policy(backbone, folder):
    return loaded(backbone, folder)


def loaded(backbone, folder):
    return backbone.load(folder, dtype=torch.float32, device="cpu")


def adapted(policy, settings=ADAPTER, *, moved=0.1):
    adapters.attach(policy.module, settings, policy.spec.branches, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in adapters.adapted_layers(policy.module).values():
        weight = layer.lora_B["default"].weight
        weight.data = moved * torch.randn(weight.shape, generator=generator)
    return policy


def side(policy):
    return 2 * find(policy.spec.name).sizes(None).stride


def drawing(policy, guidance=Guidance()):  # noqa: B008 - frozen
    # little noise, in which a wrong velocity cannot hide
    size = (side(policy), side(policy))
    steps = {"num_steps": 3, "sde_steps": (0, 1, 2)}
    return Drawing(convention="r3_constant", eta=0.05, guidance=guidance, size=size, **steps)


def rolled_out(policy, guidance=Guidance(), top_p=1.0):  # noqa: B008 - frozen
    """Segments of every stage, of groups of three and of one."""
    plan = DrawingPlan(drawing=drawing(policy, guidance))
    words = Sampling(max_new_tokens=5, top_p=top_p)
    settings = LoopSettings(protocol=AnyWords(), plan=words, critique=words, draft=plan, refine=plan)
    engine = Engine(policy=policy, settings=settings)
    drafts = [*engine.drafts(PROMPTS[:1], seed=3, plans=3), *engine.drafts(PROMPTS[1:], seed=4)]
    critiques = engine.critiques([given_image(node.prompt, node.image) for node in drafts], seed=5, each=2)
    refined = [node for node in engine.refinements(critiques, seed=6) if node is not None]
    return {
        "plan": [node.parent.sample for node in drafts],
        "draft": [node.sample for node in drafts],
        "critique": [node.sample for node in critiques],
        "refinement": [node.sample for node in refined],
    }


def test_it_is_found_by_its_name_and_by_its_folder_alone(backbone, folder, tmp_path):
    assert backbone.spec.name in names()
    assert backbone_of(folder) is backbone
    assert all(bool(find(other).refusal(folder)) for other in names() if other != backbone.spec.name)
    assert backbone.refusal(tmp_path).startswith("it has no ")
    sizes = backbone.sizes(folder)
    assert sizes.largest % sizes.stride == 0 and sizes.drawn_tokens((sizes.stride, sizes.stride)) == 3


def test_its_spec_is_true_of_its_weights(policy):
    spec, names_of = policy.spec, [name for name, _ in policy.module.named_parameters()]
    linear = {name for name, m in policy.module.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, branch in spec.branches.items():
        adapted_here = {layer for layer in linear if re.fullmatch(branch.adapted, layer)}
        assert adapted_here and {branch_of(layer, spec.branches) for layer in adapted_here} == {name}
    assert any(re.fullmatch(spec.layers, name) for name in names_of)
    assert any(part in name for name in names_of for part in spec.matrices)
    assert spec.title and spec.licence
    assert (policy.layered is not None) == spec.can_shard
    if policy.layered is not None:
        inside = {p for layer in policy.layered.layers for p in layer.parameters()}
        assert inside == {p for n, p in policy.module.named_parameters() if re.fullmatch(spec.layers, n)}
    assert not any(p.requires_grad for p in policy.module.parameters())
    with nullcontext() if spec.can_recompute else pytest.raises(InputError, match="gradient_checkpointing=false"):
        policy.checkpoint_activations(True)


def test_a_small_model_is_made_from_the_backbone_s_own_section_of_a_recipe(backbone, policy):
    section = backbone.size_section
    assert all(field.description for field in section.model_fields.values())
    stride = backbone.sizes(None).stride
    assert not list(backbone.misfits(section(), 12 * stride)) and list(backbone.misfits(section(), 12 * stride + 1))
    made = backbone.new(section(), policy.tokenizer, image_size=12 * stride, background=0.5, seed=0)
    assert made.spec is backbone.spec and backbone.describe(section())
    same, other = (
        backbone.new(section(), policy.tokenizer, image_size=12 * stride, background=0.5, seed=n) for n in (0, 1)
    )
    assert torch.equal(backbone.probe(made), backbone.probe(same))
    assert not torch.equal(backbone.probe(made), backbone.probe(other))


def test_an_update_reads_no_less_than_a_check_counts(backbone, folder, policy):
    steps = {"num_steps": 3, "window": "all"}
    rollout = {"draft": {"size": [side(policy)] * 2, **steps}, "refine": steps}
    recipe = Recipe.model_validate({"version": 1, "rewards": [{"scorer": "sharpness"}], "rollout": rollout})
    counted = fewest_tokens(recipe, backbone.spec, backbone.sizes(folder))
    stages = rolled_out(policy)
    assert counted.keys() == {"draft", "critique", "refinement"}
    for name, fewest in counted.items():
        assert 0 < fewest <= min(policy.num_tokens([segment]) for segment in stages[name]), name
    for segment in [*stages["draft"], *stages["refinement"]]:
        assert isinstance(segment, ImageTokenSegment) == (backbone.spec.draws == "tokens")


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_samples_are_scored_as_they_were_drawn(policy, guidance):
    adapted(policy)
    with adapters.adapter_merged(policy.module):
        stages = rolled_out(policy, guidance, top_p=0.9)
    assert all(stages.values())
    together = [segment for segments in stages.values() for segment in segments]
    for segments in [*stages.values(), together[::2], together[::-1]]:
        for segment, result in zip(segments, policy.replay(segments), strict=True):
            new = result.log_probs.detach()
            assert new.shape == segment.log_probs.shape and len(new) > 0
            assert float(((new - segment.log_probs).exp() - 1).abs().max()) < 1e-4, type(segment)
    assert 1 <= policy.num_tokens(together) <= sum(policy.num_tokens([segment]) for segment in together)


def test_a_batch_gives_what_its_rows_give_alone(policy):
    image = torch.rand(3, side(policy), side(policy), generator=torch.Generator().manual_seed(0))
    words = tuple(TextPiece(text=prompt.text) for prompt in PROMPTS)
    contexts = [words[:1], words[1:], words[:1], (ImagePiece(image=image), words[0])]
    seeds = [3, 4, 5, 6]
    sampling = Sampling(max_new_tokens=5)
    texts = policy.write(contexts, sampling, seeds)
    drawings = [drawing(policy, GUIDANCE["guided"])] * 4
    images = policy.draw(contexts, drawings, seeds)
    for i, (text, drawn) in enumerate(zip(texts, images, strict=True)):
        (alone,) = policy.write(contexts[i : i + 1], sampling, seeds[i : i + 1])
        assert alone.token_ids == text.token_ids
        torch.testing.assert_close(alone.log_probs, text.log_probs, atol=1e-5, rtol=0)
        (alone_drawn,) = policy.draw(contexts[i : i + 1], drawings[:1], seeds[i : i + 1])
        torch.testing.assert_close(alone_drawn.image, drawn.image, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone_drawn.log_probs, drawn.log_probs, atol=1e-4, rtol=1e-4)
    assert texts[0].token_ids != texts[2].token_ids or not torch.equal(images[0].image, images[2].image), "seeds act"


def test_who_listens_hears_a_text_grow_to_the_whole_and_changes_nothing_of_it(policy):
    context, sampling, heard = (TextPiece(text="a red circle"),), Sampling(max_new_tokens=6), []
    text, other = policy.write([context] * 2, sampling, [0, 1], [heard.append, None])
    assert heard[-1] == text.text and [len(words) for words in heard] == sorted(map(len, heard))
    assert [t.token_ids for t in policy.write([context] * 2, sampling, [0, 1])] == [text.token_ids, other.token_ids]


def test_an_adapter_is_switched_off_merged_and_dropped_from(backbone, folder):
    policy = loaded(backbone, folder)
    base = backbone.probe(policy)
    assert torch.equal(backbone.probe(adapted(policy, replace(ADAPTER, dropout=0.5), moved=0.0)), base), "B is zero"
    for layer in adapters.adapted_layers(policy.module).values():
        layer.lora_B["default"].weight.data += 0.1
    moved = backbone.probe(policy)
    assert not torch.equal(moved, base)
    with policy.reference():
        assert torch.equal(backbone.probe(policy), base)
    with adapters.adapter_merged(policy.module):
        torch.testing.assert_close(backbone.probe(policy), moved, atol=1e-4, rtol=1e-4)
    with adapters.training_mode(policy.module, seed=(1, 2)):
        dropped = backbone.probe(policy)
    assert not torch.equal(dropped, moved)
    with adapters.training_mode(policy.module, seed=(1, 2)):
        assert torch.equal(backbone.probe(policy), dropped), "the seed fixes the masks"
    assert torch.equal(backbone.probe(policy), moved), "nothing drops outside"


def test_what_is_saved_loads_and_what_is_exported_is_the_policy(backbone, folder, tmp_path):
    policy = loaded(backbone, folder)
    backbone.save(policy, tmp_path / "again")
    again = loaded(backbone, tmp_path / "again")
    assert torch.equal(backbone.probe(again), backbone.probe(policy))
    assert backbone.fingerprint(tmp_path / "again") == backbone.fingerprint(folder)
    assert again.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    backbone.save(policy, tmp_path / "half", dtype=torch.bfloat16)
    assert backbone.fingerprint(tmp_path / "half") != backbone.fingerprint(folder)
    assert next(policy.module.parameters()).dtype == torch.float32, "the policy stays as it is"
    adapted(policy)
    saved = adapters.save_adapter(policy.module, tmp_path / "adapter", fingerprint=backbone.fingerprint(folder))
    merged = export(saved, tmp_path / "merged", merge=True, base=folder)
    torch.testing.assert_close(
        backbone.probe(loaded(backbone, merged.folder)), backbone.probe(policy), atol=1e-4, rtol=1e-4
    )
    assert export(saved, base=folder).difference == 0, "read back by plain peft"


def test_gradient_reaches_every_branch(policy):
    adapted(policy)
    stages = rolled_out(policy)
    results = policy.replay([segment for segments in stages.values() for segment in segments])
    torch.cat([result.log_probs.square() for result in results]).sum().backward()
    for branch, parameters in adapters.trainable_parameters(policy.module, policy.spec.branches).items():
        squares = [p.grad.square().sum() for p in parameters.values() if p.grad is not None]
        assert sum(squares) > 0, branch


def test_supervised_losses_are_sums_and_have_gradient(policy):
    policy.module.requires_grad_(True)
    image = torch.rand(3, side(policy), side(policy), generator=torch.Generator().manual_seed(0))
    said = Example(context=(TextPiece(text="a red circle"),), answer="red circle")
    shown = Example(context=(TextPiece(text="a red circle"),), answer="red", image=image)
    noise = SupervisedNoise(times_per_image=2, time_mean=0.0, soften_below=0.0)
    whole = policy.supervised([said, shown], noise, torch.Generator().manual_seed(3))
    assert (whole.num_flow, whole.num_text) == policy.supervised_sizes([said, shown], noise)
    parts = [policy.supervised([e], noise, torch.Generator().manual_seed(3)) for e in (said, shown)]
    torch.testing.assert_close(whole.text, parts[0].text + parts[1].text)
    torch.testing.assert_close(whole.flow, parts[1].flow)
    (whole.text + whole.flow).backward()
    layers = [p for name, p in policy.module.named_parameters() if re.fullmatch(policy.spec.layers, name)]
    assert all(p.grad is not None and bool(p.grad.any()) for p in layers)


def test_without_a_base_there_is_no_reference(backbone, folder):
    policy = loaded(backbone, folder)
    base = backbone.probe(policy)
    with policy.reference():
        assert torch.equal(backbone.probe(policy), base), "nothing is trained: it is its own base"
    policy.module.requires_grad_(True)
    with pytest.raises(RunError, match="there is no reference policy"), policy.reference():
        pass
    policy.remember_base()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(0.01)
    moved = backbone.probe(policy)
    with policy.reference():
        assert torch.equal(backbone.probe(policy), base)
    assert torch.equal(backbone.probe(policy), moved) and not torch.equal(moved, base)


def test_memory_returns(policy):
    def held():
        gc.collect()
        return sum(o.nbytes for o in gc.get_objects() if type(o) is torch.Tensor)

    adapted(policy)
    rolled_out(policy)  # what is made once stays
    before = held()
    for _ in range(2):
        stages = rolled_out(policy)
        results = policy.replay([segment for segments in stages.values() for segment in segments])
        torch.cat([result.log_probs for result in results]).sum().backward()
        policy.module.zero_grad()
        del stages, results
    assert held() <= before


def test_an_image_is_refined_as_the_spec_says(policy):
    """An edit reads the image first; who regenerates reads the prompt, looks, reads what to change, and cannot edit."""
    context = rolled_out(policy)["refinement"][0].context
    kinds = [piece.use if isinstance(piece, ImagePiece) else "text" for piece in context]
    assert kinds == {"edit": ["edit", "text"], "regenerate": ["text", "look", "text"]}[policy.spec.refines]
    image = torch.rand(3, side(policy), side(policy))
    if policy.spec.refines == "regenerate":
        with pytest.raises(InputError, match="does not edit"):
            policy.draw([(ImagePiece(image=image, use="edit"),)], [drawing(policy)], [0])
