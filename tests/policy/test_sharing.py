"""What rows share is read once: in rollout and replay, guided or not, in groups of any size, by any objects."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.nodes import given_image
from r3_rl.policy.bagel import encoder
from r3_rl.policy.base import FlowReplay, Sampling
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import DrawingPlan
from tests.policy.test_policy import FAITHFUL, GUIDED, deviation
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy

EDITS = (
    "add a cross",
    "draw",
    "remove a blue square",
    "a",
    "a circle",
    "move",
    "up",
    "a red circle",
    "down",
    "a cross",
)
SIZES = pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 3, 4), (5, 1, 2)], ids=["equal", "ragged", "one_alone"])
DRAWINGS = pytest.mark.parametrize("drawing", [FAITHFUL, GUIDED], ids=["plain", "guided"])
BACKENDS = pytest.mark.parametrize("backend", ["matmul", "sdpa"])


@dataclass(kw_only=True)
class Count:
    """What is read while something runs."""

    latents: int = 0
    """Images through the autoencoder's encoder."""
    looks: int = 0
    """Images through the understanding tower."""
    cached: int = 0
    """Tokens whose keys are kept."""
    passes: int = 0
    """That keep keys."""


@contextmanager
def counted(policy):
    count, model, autoencoder = Count(), policy.model, policy.reader.autoencoder
    plain = autoencoder.encode

    def encode(images):
        count.latents += len(images)
        return plain(images)

    def look(_, args):
        count.looks += len(args[0])

    def forward(_, args, kwargs):
        if kwargs.get("keep"):
            count.cached += args[0].layout.position.shape[0]
            count.passes += 1

    autoencoder.encode = encode
    handles = [model.vit_model.register_forward_pre_hook(look)]
    handles.append(model.register_forward_pre_hook(forward, with_kwargs=True))
    try:
        yield count
    finally:
        del autoencoder.encode
        for handle in handles:
            handle.remove()


def edits(sizes):
    """Groups at one image each, every row with objects and an instruction of its own."""
    images = pictures(len(sizes))
    owners = [group for group, size in enumerate(sizes) for _ in range(size)]
    return [
        (ImagePiece(image=images[group].clone(), use="edit"), TextPiece(text=EDITS[i % len(EDITS)]))
        for i, group in enumerate(owners)
    ]


def looks(sizes):
    images = pictures(len(sizes))
    return [
        (ImagePiece(image=images[group].clone()), TextPiece(text=f"check {PROMPTS[group].text}"))
        for group, size in enumerate(sizes)
        for _ in range(size)
    ]


def distinct_tokens(policy, contexts):
    """Tokens of the last piece of every distinct beginning of the contexts."""
    ends = {tuple(p.key for p in c[:end]): c[end - 1] for c in contexts for end in range(1, len(c) + 1)}
    return sum(policy.reader.num_tokens((piece,)) for piece in ends.values())


@BACKENDS
@DRAWINGS
@SIZES
def test_drawing_reads_every_image_and_every_prefix_once(sizes, drawing, backend):
    policy, contexts = tiny_policy(backend=backend), edits(sizes)
    with counted(policy) as count:
        policy.draw(contexts, [drawing] * len(contexts), range(len(contexts)))
    assert (count.latents, count.looks) == (len(sizes), len(sizes))
    dropped = [c[1:] for c in contexts] if drawing is GUIDED else []
    assert count.cached == distinct_tokens(policy, [*contexts, *dropped])
    assert count.passes == 2, "images, then instructions"


@SIZES
def test_writing_reads_every_image_once(sizes):
    policy, contexts = tiny_policy(), looks(sizes)
    with counted(policy) as count:
        policy.write(contexts, Sampling(max_new_tokens=2), range(len(contexts)))
    assert (count.latents, count.looks, count.passes) == (0, len(sizes), 1)
    assert count.cached == distinct_tokens(policy, contexts)


@DRAWINGS
@SIZES
def test_replay_reads_every_image_once(sizes, drawing):
    policy = tiny_policy()
    contexts = edits(sizes)
    images = policy.draw(contexts, [drawing] * len(contexts), range(len(contexts)))
    texts = policy.write(looks(sizes), Sampling(max_new_tokens=5), range(len(contexts)))
    for segments, num_latents in ((images, len(sizes)), (texts, 0), ([*images, *texts], len(sizes))):
        with counted(policy) as count:
            policy.replay(segments)
        assert count.latents == num_latents
        assert count.looks == len(sizes) * (1 + (len(segments) > len(contexts)))


def test_sixteen_guided_peers_cost_what_one_costs():
    policy, contexts = tiny_policy(), edits((16,))
    with counted(policy) as count:
        drawn = policy.draw(contexts, [GUIDED] * 16, range(16))
        policy.replay(drawn)
    assert (count.latents, count.looks) == (2, 2), "once each in the rollout and in the replay"


def test_rows_whose_dropped_contexts_are_equal_share_them():
    policy = tiny_policy()
    system = TextPiece(text="draw", keep=True)
    contexts = [(system, TextPiece(text=EDITS[i])) for i in range(6)]
    with counted(policy) as count:
        policy.draw(contexts, [GUIDED] * 6, range(6))
    assert count.cached == distinct_tokens(policy, contexts), "what is left without the text is the system prompt"


def test_peers_need_not_lie_side_by_side():
    policy = tiny_policy()
    contexts = edits((3, 3))
    mixed = [contexts[i] for i in (0, 3, 1, 4, 2, 5)]
    with counted(policy) as count:
        batch = policy.draw(mixed, [GUIDED] * 6, range(6))
    assert count.latents == 2
    for i, (context, row) in enumerate(zip(mixed, batch, strict=True)):
        (alone,) = policy.draw([context], [GUIDED], [i])
        torch.testing.assert_close(alone.image, row.image, atol=2e-5, rtol=0)


def test_a_stopped_critique_does_not_end_the_sharing():
    policy, guided = tiny_policy(), DrawingPlan(drawing=GUIDED)
    engine = Engine(policy=policy, settings=replace(loop(), refine=guided))
    looked_at = [given_image(p, i) for p, i in zip(PROMPTS, pictures(3), strict=True)]
    critiques = []
    for i, node in enumerate(engine.critiques(looked_at, seed=5, each=4)):
        said = replace(node.critique, stop=i == 5, instruction="" if i == 5 else EDITS[i % 10])
        critiques.append(replace(node, critique=said))
    with counted(policy) as count:
        drawn = engine.refinements(critiques, seed=5)
    assert [image is None for image in drawn] == [i == 5 for i in range(12)]
    assert (count.latents, count.looks) == (3, 3)


@BACKENDS
@DRAWINGS
@SIZES
def test_sharing_changes_no_image(sizes, drawing, backend):
    policy, contexts = tiny_policy(backend=backend), edits(sizes)
    batch = policy.draw(contexts, [drawing] * len(contexts), range(len(contexts)))
    for i, (context, row) in enumerate(zip(contexts, batch, strict=True)):
        (alone,) = policy.draw([context], [drawing], [i])
        torch.testing.assert_close(alone.image, row.image, atol=2e-5, rtol=0)
        torch.testing.assert_close(alone.states, row.states, atol=1e-4, rtol=0)


@BACKENDS
def test_texts_are_not_padded_to_the_length_of_images(backend, monkeypatch):
    policy, contexts = tiny_policy(backend=backend), edits((3, 2))
    together = policy.draw(contexts, [GUIDED] * 5, range(5))
    monkeypatch.setattr(encoder, "_MOST_PADDING", 8)
    with counted(policy) as count:
        apart = policy.draw(contexts, [GUIDED] * 5, range(5))
    assert count.passes > 2 and count.latents == 2
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a.image, b.image, atol=2e-5, rtol=0)
    assert deviation(policy, apart) < 1e-4


@BACKENDS
@SIZES
def test_sharing_changes_no_text(sizes, backend):
    policy, contexts, sampling = tiny_policy(backend=backend), looks(sizes), Sampling(max_new_tokens=12)
    batch = policy.write(contexts, sampling, range(len(contexts)))
    for i, (context, row) in enumerate(zip(contexts, batch, strict=True)):
        (alone,) = policy.write([context], sampling, [i])
        assert alone.token_ids == row.token_ids
        torch.testing.assert_close(alone.log_probs, row.log_probs, atol=2e-5, rtol=0)


@BACKENDS
@DRAWINGS
@SIZES
def test_what_is_shared_is_scored_as_sampled_and_as_apart(sizes, drawing, backend):
    policy, contexts = tiny_policy(backend=backend), edits(sizes)
    images = policy.draw(contexts, [drawing] * len(contexts), range(len(contexts)))
    texts = policy.write(looks(sizes), Sampling(max_new_tokens=5), range(len(contexts)))
    segments = [*images, *texts]
    assert deviation(policy, segments) < 1e-4
    with torch.no_grad():
        assert deviation(policy, segments) < 1e-4, "as the reference policy scores them"
    for whole, segment in zip(policy.replay(segments), segments, strict=True):
        (alone,) = policy.replay([segment])
        torch.testing.assert_close(whole.log_probs, alone.log_probs, atol=2e-5, rtol=0)


@DRAWINGS
@SIZES
def test_what_is_shared_gets_the_gradient_of_all_rows(sizes, drawing):
    policy, contexts = tiny_policy(), edits(sizes)
    segments = policy.draw(contexts, [drawing] * len(contexts), range(len(contexts)))

    def gradient(passes):
        policy.module.zero_grad()
        for batch in passes:
            results = [r for r in policy.replay(batch) if isinstance(r, FlowReplay)]
            torch.cat([r.velocity.flatten() for r in results]).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])

    together, apart = gradient([segments]), gradient([[s] for s in segments])
    torch.testing.assert_close(together, apart, atol=2e-6 * float(apart.norm()), rtol=0)


def test_equal_plans_of_one_prompt_are_both_scored():
    policy, context = tiny_policy(), (TextPiece(text="a red circle"),)
    plan = policy.write([context], Sampling(max_new_tokens=4), [1])[0]
    twin = replace(plan, token_ids=(*plan.token_ids,))
    after = [(*context, TextPiece(text=p.text, token_ids=p.token_ids)) for p in (plan, twin)]
    drafts = policy.draw(after, [GUIDED] * 2, [1, 2])
    found = policy.replay([plan, twin, *drafts])
    torch.testing.assert_close(found[0].log_probs, found[1].log_probs, atol=1e-6, rtol=0)
    assert deviation(policy, [plan, twin, *drafts]) < 1e-4
