"""A policy scores its own samples as it sampled them, whatever else shares the batch (traps 1-9 and 22)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r3_rl.errors import CheckpointError, InputError
from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import ImagePiece, TextPiece, TextSegment
from r3_rl.nodes import given_image
from r3_rl.policy.adapters import AdapterSettings, adapter_merged, trainable_parameters
from r3_rl.policy.bagel.autoencoder import Autoencoder, latents_to_tokens
from r3_rl.policy.bagel.config import AutoencoderConfig
from r3_rl.policy.bagel.reader import Reader, special_token_ids
from r3_rl.policy.bagel.sampler import row_noise
from r3_rl.policy.bagel.tiny import write_tiny_checkpoint
from r3_rl.policy.base import Drawing, Example, Sampling
from r3_rl.policy.registry import load
from r3_rl.policy.tokens import choose, token_log_probs
from r3_rl.policy.words import unknown_words
from r3_rl.rollout.engine import Engine
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages.settings import DrawingPlan
from tests.policy.tiny import PAPER_GUIDANCE, PROMPTS, loop, pictures, tiny_policy

ADAPTER = AdapterSettings(rank=4, alpha=8.0)
# little noise: then a wrong velocity cannot hide in it
FAITHFUL = Drawing(num_steps=4, convention="r3_constant", eta=0.05, sde_steps=(0, 1, 2, 3))
GUIDED = replace(FAITHFUL, guidance=PAPER_GUIDANCE)
LONG, SHORT = Sampling(max_new_tokens=64), Sampling(max_new_tokens=12)


def one_of_each(policy, drawing, *, plan=Sampling(max_new_tokens=6), critique=Sampling(max_new_tokens=9)):  # noqa: B008
    """Segments of plan, draft, critique and refinement, peers and unlike lengths among them."""
    as_given = DrawingPlan(drawing=drawing)
    settings = replace(loop(plan=plan, critique=critique, size=drawing.size), draft=as_given, refine=as_given)
    engine = Engine(policy=policy, settings=settings)
    drafts = engine.drafts(PROMPTS, seed=3, plans=2)
    critiques = engine.critiques([given_image(d.prompt, d.image) for d in drafts], seed=5)
    refined = engine.refinements(critiques, seed=5)
    found = {
        "plan": [d.parent.sample for d in drafts],
        "draft": [d.sample for d in drafts],
        "critique": [c.sample for c in critiques],
        "refinement": [node.sample for node in refined if node is not None],
    }
    assert all(found.values())
    return found


def critiques_of(policy, images):
    """Two critiques of each image."""
    nodes = [given_image(p, i) for p, i in zip(PROMPTS, images, strict=True)]
    return [c.sample for c in Engine(policy=policy, settings=loop()).critiques(nodes, seed=5, each=2)]


@pytest.fixture(scope="module")
def policy():
    """For tests that leave the weights alone."""
    return tiny_policy()


def deviation(policy, segments):
    """Largest |ratio - 1|."""
    pairs = zip(segments, policy.replay(segments), strict=True)
    return max(float(((new.log_probs.detach() - s.log_probs).exp() - 1).abs().max()) for s, new in pairs)


@pytest.mark.parametrize(
    ("guidance", "size", "backend"),
    [
        (Guidance(), (36, 36), "matmul"),
        (PAPER_GUIDANCE, (36, 24), "matmul"),
        (PAPER_GUIDANCE, (24, 36), "sdpa"),
        (replace(PAPER_GUIDANCE, renorm="text_channel"), (36, 36), "matmul"),
        (replace(PAPER_GUIDANCE, image=1.0), (36, 24), "sdpa"),
    ],
    ids=["plain", "global", "global_sdpa", "text_channel", "text_only"],
)
def test_on_policy_ratio_is_one(guidance, size, backend):
    policy = tiny_policy(adapter=ADAPTER, moved=0.1, backend=backend)
    with adapter_merged(policy.module):
        stages = one_of_each(policy, replace(FAITHFUL, guidance=guidance, size=size))
    for name, segments in stages.items():
        assert deviation(policy, segments) < 1e-4, name
    together = [s for segments in stages.values() for s in segments]
    assert deviation(policy, together) < 1e-4


@pytest.mark.parametrize("convention", ["r3_monotonic", "flow_grpo", "cps", "matching"])
def test_every_convention_is_scored_as_drawn(policy, convention):
    drawing = replace(GUIDED, convention=convention, eta=0.4, sde_steps=(0, 2), shift=3.0)
    assert deviation(policy, one_of_each(policy, drawing)["refinement"]) < 1e-4


@pytest.mark.parametrize("drawing", [FAITHFUL, GUIDED], ids=["plain", "guided"])
def test_rows_are_matched_at_their_own_levels_in_as_many_passes(policy, drawing):
    """Levels inside and outside the guidance's interval lie side by side, and a row may have fewer than others."""
    levels = [(0, 2), (1, 3), (3,), ()]
    drawings = [replace(drawing, convention="matching", sde_steps=steps) for steps in levels]
    contexts, passes = contexts_of_unlike_lengths(), []
    handle = policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(not kwargs.get("keep")), with_kwargs=True
    )
    together = policy.draw(contexts, drawings, range(4))
    handle.remove()
    assert sum(passes) == drawing.num_steps + 2
    for row, (image, steps) in enumerate(zip(together, levels, strict=True)):
        (alone,) = policy.draw([contexts[row]], [drawings[row]], [row])
        torch.testing.assert_close(image.log_probs, alone.log_probs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(image.times, alone.times)
        assert len(image.log_probs) == len(steps)
    assert deviation(policy, [image for image in together if len(image.times)]) < 1e-4


def test_images_matched_at_a_shared_noise_differ_in_nothing_but_the_image(policy):
    """x_t - (1 - t) x_0 = t x_1 is one and the same, and the images are those that own noise would have made."""
    matching = replace(GUIDED, convention="matching", sde_steps=(0, 2), shift=3.0)
    contexts = contexts_of_unlike_lengths()[:3]
    drawings = [replace(matching, matching_seed=seed) for seed in (5, 5, 6)]
    drawn, own = (policy.draw(contexts, how, [1, 2, 3]) for how in (drawings, [matching] * 3))
    noises = []
    for image, plain in zip(drawn, own, strict=True):
        assert torch.equal(image.image, plain.image) and torch.equal(image.times, plain.times)
        data = image.states - image.times[:, None, None] * image.next_states
        assert torch.allclose(data[0], data[1], atol=1e-5)
        noises.append(data[0] + image.next_states[0])
        plain_data = plain.states - plain.times[:, None, None] * plain.next_states
        torch.testing.assert_close(data, plain_data, atol=1e-4, rtol=0)
        assert not torch.allclose(noises[-1], plain_data[0] + plain.next_states[0], atol=0.1)
    torch.testing.assert_close(noises[0], noises[1], atol=1e-4, rtol=0)
    assert not torch.allclose(noises[0], noises[2], atol=0.1)
    assert deviation(policy, drawn) < 1e-4
    (none,) = policy.draw(contexts[:1], [replace(drawings[0], sde_steps=())], [1])
    torch.testing.assert_close(none.image, drawn[0].image, atol=1e-4, rtol=0)
    assert not len(none.times)


def test_only_matching_reads_the_seed_of_its_noise(policy):
    """Stochastic steps keep a noise of their own, or peers would be one image."""
    drawing = replace(GUIDED, convention="cps", eta=0.4, sde_steps=(0, 2), shift=3.0)
    contexts = contexts_of_unlike_lengths()[:2]
    plain, seeded = (policy.draw(contexts, [how] * 2, [1, 2]) for how in (drawing, replace(drawing, matching_seed=5)))
    assert all(torch.equal(one.next_states, other.next_states) for one, other in zip(plain, seeded, strict=True))


def test_matching_draws_by_the_ode_and_its_gradient_lowers_the_loss_of_the_image():
    policy = tiny_policy(adapter=ADAPTER, moved=0.1)
    matching = replace(GUIDED, convention="matching", sde_steps=(0, 2), shift=3.0)
    drafts = one_of_each(policy, matching)["draft"]
    ode = one_of_each(policy, replace(matching, convention="cps", eta=0.4, sde_steps=()))["draft"]
    own_noise = row_noise(row_seeds(3, 1, 6), 1, tuple(drafts[0].states.shape[1:]))[:, 0]
    for draft, plain, noise in zip(drafts, ode, own_noise, strict=True):
        torch.testing.assert_close(draft.states[0], noise, atol=1e-5, rtol=0)
        assert torch.equal(draft.image, plain.image), "no step is stochastic"
        assert len(draft.times) == 2 and draft.times[0] == 1 and len(plain.times) == 0
        # v = x_1 - x_0 and x_t = x_0 + t v: both levels belong to one image and to the noise that it was drawn from
        data = draft.states - draft.times[:, None, None] * draft.next_states
        torch.testing.assert_close(data[0], data[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(draft.states[0], data[0] + draft.next_states[0], atol=1e-5, rtol=0)
    before = policy.replay(drafts[:1])[0].log_probs
    assert (before < 0).all()
    before.sum().backward()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.grad is not None:
                parameter += 1e-3 * parameter.grad
    assert policy.replay(drafts[:1])[0].log_probs.sum() > before.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=7, temperature=0.6, top_p=0.7),
        Sampling(max_new_tokens=7, temperature=1.7),
        Sampling(max_new_tokens=2, top_p=0.9),
    ],
)
def test_texts_are_scored_as_tempered_and_truncated(policy, sampling):
    texts = one_of_each(policy, FAITHFUL, plan=sampling, critique=sampling)
    assert deviation(policy, texts["plan"] + texts["draft"]) < 1e-4
    assert deviation(policy, texts["critique"]) < 1e-4
    assert not any(s.ended for s in texts["plan"]), "the limit is short, so these are cut texts"


def test_truncation_keeps_one_float_a_token(policy):
    context, sampling = (TextPiece(text="a red circle"),), Sampling(max_new_tokens=30, top_p=0.8)
    texts = policy.write([context] * 6, sampling, range(6))
    for text in texts:
        assert text.cutoff.shape == text.log_probs.shape and text.cutoff.dtype == torch.float32
    assert all(t.cutoff is None for t in policy.write([context], replace(sampling, top_p=1.0), [1]))
    assert all(t.cutoff is None for t in policy.write([context], replace(sampling, temperature=0.0), [1]))


def test_the_line_of_truncation_falls_into_a_gap():
    probs = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    uniform = torch.zeros(3)
    for top_p, kept in ((0.3, [1, 4, 1]), (0.5, [2, 4, 1]), (0.75, [3, 4, 1]), (0.99, [4, 4, 1])):
        logits = probs.clamp(min=1e-12).log() + torch.tensor([[3.0], [-50.0], [0.0]])
        ids, log_probs, cutoff = choose(logits, Sampling(top_p=top_p), uniform)
        in_play = logits - logits.mean(-1, keepdim=True) >= cutoff[:, None]
        assert in_play.sum(-1).tolist() == kept, top_p
        again = token_log_probs(logits + 7.0, ids, cutoff=cutoff)
        torch.testing.assert_close(again, log_probs, atol=1e-5, rtol=0)


def test_under_other_weights_a_truncated_text_keeps_its_tokens_and_its_rivals():
    policy, sampling = tiny_policy(), Sampling(max_new_tokens=12, top_p=0.7)
    texts = policy.write([(TextPiece(text="a red circle"),)] * 6, sampling, range(6))
    with torch.no_grad():  # the likeliest words of before are now the least likely
        policy.module.language_model.lm_head.weight.neg_()
    for scored in policy.replay(texts):
        assert torch.isfinite(scored.log_probs).all() and (scored.log_probs <= 0).all()
    logits, target = torch.tensor([[2.0, 1.5, 1.0, -4.0, -5.0]]), torch.tensor([0])
    _, _, cutoff = choose(logits, Sampling(top_p=0.9), torch.zeros(1))
    likelier = logits + torch.tensor([[3.0, 0, 0, 0, 0]])
    expected = likelier[:, :3].log_softmax(-1)[:, 0]
    found = token_log_probs(likelier, target, cutoff=cutoff)
    torch.testing.assert_close(found, expected, msg="a likelier target pushes no rival out")


def test_a_truncated_text_has_the_gradient_of_its_support(policy):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids, log_probs, cutoff = choose(logits.detach(), Sampling(top_p=0.6), torch.tensor([0.1, 0.5, 0.9, 0.99]))
    new = token_log_probs(logits, ids, cutoff=cutoff)
    torch.testing.assert_close(new.detach(), log_probs, atol=1e-6, rtol=0)
    new.sum().backward()
    in_play = logits.detach() - logits.detach().mean(-1, keepdim=True) >= cutoff[:, None]
    assert not bool(logits.grad[~in_play].any()) and bool((logits.grad[in_play] != 0).any())


def test_a_difference_between_rollout_and_replay_shows_in_the_ratio(policy):
    """The checks above would fail if replay forgot guidance, temperature, truncation or the image's shape."""
    tempered = Sampling(max_new_tokens=6, temperature=0.6, top_p=0.7)
    found = one_of_each(policy, replace(GUIDED, size=(36, 24)), plan=tempered)
    plans, drafts = found["plan"], found["draft"]
    assert deviation(policy, [replace(s, temperature=1.0) for s in plans]) > 1e-2
    assert deviation(policy, [replace(s, cutoff=None) for s in plans]) > 1e-2
    for other in (
        replace(GUIDED, size=(24, 36)),
        replace(GUIDED, size=(36, 24), guidance=Guidance()),
        replace(GUIDED, size=(36, 24), guidance=replace(PAPER_GUIDANCE, text=4.1)),
        replace(GUIDED, size=(36, 24), guidance=replace(PAPER_GUIDANCE, interval=(0.5, 1.0))),
    ):
        assert deviation(policy, [replace(s, drawing=other) for s in drafts]) > 1e-3, other


def test_a_plan_and_its_draft_share_one_row_and_score_as_apart(policy):
    found = one_of_each(policy, GUIDED)
    plans, drafts = found["plan"], found["draft"]
    seen = rows_of_passes(policy, lambda: policy.replay([*plans, *drafts]))
    assert seen == [3, 6, 6], "three prompts; six rows of plan and draft; six without the text, which share nothing"
    together = policy.replay([*plans, *drafts])
    apart = [*policy.replay(plans), *policy.replay(drafts)]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a.log_probs, b.log_probs, atol=2e-5, rtol=0)


def test_what_peers_share_is_read_once_and_scores_as_apart(policy):
    found = one_of_each(policy, GUIDED)
    images = [d.image for d in found["draft"][::2]]
    critiques = critiques_of(policy, images)
    seen = rows_of_passes(policy, lambda: policy.replay(critiques))
    assert seen == [3, 6], "three images, six critiques"
    ragged = [*critiques[1:], *found["refinement"], *found["plan"][:3], *found["draft"][2:]]
    for whole, segment in zip(policy.replay(ragged), ragged, strict=True):
        (alone,) = policy.replay([segment])
        torch.testing.assert_close(whole.log_probs, alone.log_probs, atol=2e-5, rtol=0)


def test_a_shared_context_gets_the_gradient_of_all_its_rows():
    policy = tiny_policy()
    images = [d.image for d in one_of_each(policy, FAITHFUL)["draft"][::2]]
    critiques = critiques_of(policy, images)[:5]

    def gradient(passes):
        policy.module.zero_grad()
        for segments in passes:
            torch.cat([r.log_probs for r in policy.replay(segments)]).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])

    together, apart = gradient([critiques]), gradient([[c] for c in critiques])
    torch.testing.assert_close(together, apart, atol=2e-6 * float(apart.norm()), rtol=0)


def rows_of_passes(policy, run):
    """Rows of every pass through the model while `run` runs; a decoded token goes through the head alone."""
    seen, packed = [], []
    model, head = policy.model, policy.model.language_model.lm_head
    handles = [
        model.register_forward_pre_hook(lambda _, args: packed.append(args[0].layout.num_rows)),
        head.register_forward_pre_hook(lambda _, args: seen.append(packed.pop() if packed else args[0].shape[0])),
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def contexts_of_unlike_lengths():
    images = pictures(2)
    long = TextPiece(text="check two blue squares and a green cross , a circle")
    return [
        (TextPiece(text="a red circle"),),
        (ImagePiece(image=images[0]), long),
        (ImagePiece(image=images[1], use="edit"), TextPiece(text="add a cross")),
        (long, TextPiece(text="a")),
    ]


def test_texts_of_a_batch_are_those_of_its_rows(policy):
    contexts, sampling = contexts_of_unlike_lengths(), Sampling(max_new_tokens=12, top_p=0.9)
    batch = policy.write(contexts, sampling, [1, 2, 3, 4])
    for context, seed, row in zip(contexts, [1, 2, 3, 4], batch, strict=True):
        (alone,) = policy.write([context], sampling, [seed])
        assert alone.token_ids == row.token_ids
        torch.testing.assert_close(alone.log_probs, row.log_probs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("drawing", [FAITHFUL, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("size", [(36, 36), (24, 36)])
def test_images_of_a_batch_are_those_of_its_rows(policy, drawing, size):
    """Positions come from the row and not from the padding; renormalisation is per image."""
    contexts, drawing = contexts_of_unlike_lengths(), replace(drawing, size=size)
    batch = policy.draw(contexts, [drawing] * 4, [1, 2, 3, 4])
    for context, seed, row in zip(contexts, [1, 2, 3, 4], batch, strict=True):
        assert row.image.shape == (3, *size)
        (alone,) = policy.draw([context], [drawing], [seed])
        torch.testing.assert_close(alone.image, row.image, atol=2e-5, rtol=0)
        torch.testing.assert_close(alone.states, row.states, atol=1e-4, rtol=0)


def test_height_and_width_are_not_swapped(policy):
    context = [contexts_of_unlike_lengths()[2]]
    wide, high = (policy.draw(context, [replace(FAITHFUL, size=s)], [1])[0].image for s in ((24, 36), (36, 24)))
    assert wide.shape == (3, 24, 36) and high.shape == (3, 36, 24)
    assert not torch.allclose(wide.transpose(1, 2), high, atol=1e-2)
    tall = ImagePiece(image=pictures(1, height=36, width=24)[0], use="edit")
    latent, look = policy.reader.blocks((tall,))
    assert latent.grid == look.grid == (3, 2)


def test_a_group_of_one_context_is_one_row_of_the_first_pass(policy):
    context = (TextPiece(text="a red circle"),)
    seen = rows_of_passes(policy, lambda: policy.write([context] * 8, Sampling(max_new_tokens=2), range(8)))
    assert seen[0] == 1 and seen[1] == 8


def test_finished_texts_leave_the_batch(policy):
    texts = []
    contexts = [(TextPiece(text="a red circle"),)] * 32
    seen = rows_of_passes(policy, lambda: texts.extend(policy.write(contexts, LONG, range(32))))
    assert any(t.ended for t in texts) and len({len(t.token_ids) for t in texts}) > 3
    assert min(seen[1:]) < 32 and seen[1:] == sorted(seen[1:], reverse=True)
    for step, rows in enumerate(seen[1:]):
        running = sum(len(t.token_ids) > step for t in texts)
        assert running <= rows < 2 * running + 1, "never more than twice what still runs"


def test_the_end_token_is_part_of_an_ended_text_and_of_no_other(policy):
    texts = policy.write([(TextPiece(text="a red circle"),)] * 24, LONG, range(24))
    eos = policy.reader.eos
    for text in texts:
        assert (text.token_ids[-1] == eos) is text.ended
        assert eos not in text.token_ids[:-1]
        assert text.log_probs.shape == (len(text.token_ids),)
        assert text.ended or len(text.token_ids) == LONG.max_new_tokens
    assert {t.ended for t in texts} == {True, False}
    assert deviation(policy, texts) < 1e-4
    for text, scored in zip(texts, policy.replay(texts), strict=True):
        assert scored.log_probs.shape == text.log_probs.shape, (
            "the end token is scored, hence trained, like every other one"
        )


def test_seeds_make_samples_and_nothing_else_does(policy):
    context = (TextPiece(text="a red circle"),)

    def sampled(seeds, noise_seeds=None):
        torch.rand(3)  # whatever the global generator has been used for
        texts = policy.write([context] * 3, Sampling(max_new_tokens=8), seeds)
        return [t.token_ids for t in texts], policy.draw([context] * 3, [FAITHFUL] * 3, seeds, noise_seeds)

    texts, images = sampled([1, 2, 1])
    again, images_again = sampled([1, 2, 1])
    assert texts == again and all(torch.equal(a.image, b.image) for a, b in zip(images, images_again, strict=True))
    assert texts[0] == texts[2] != texts[1]
    torch.testing.assert_close(images[0].image, images[2].image, atol=1e-5, rtol=0)
    assert not torch.allclose(images[0].image, images[1].image, atol=1e-2)
    _, peers = sampled([1, 2, 3], [9, 9, 9])
    starts = torch.stack([p.states[0] for p in peers])
    assert torch.equal(starts[0], starts[1]), "peers with one noise seed start from the same noise"
    assert not torch.equal(peers[0].next_states[0], peers[1].next_states[0]), "and part at the first stochastic step"


def test_noise_of_the_steps_is_not_that_of_the_start(policy):
    (drawn,) = policy.draw([(TextPiece(text="a"),)], [FAITHFUL], [7])
    (result,) = policy.replay([drawn])
    noise = (drawn.next_states - result.mean) / result.std[:, None, None]
    flat = torch.cat([drawn.states[:1].flatten(1), noise.flatten(1)])
    correlation = torch.corrcoef(flat.detach())
    assert (correlation - torch.eye(5)).abs().max() < 0.05


def test_ode_steps_carry_no_log_prob(policy):
    context = [(TextPiece(text="a red circle"),)]
    (some,) = policy.draw(context, [replace(FAITHFUL, sde_steps=(1, 3))], [1])
    assert some.times.tolist() == [0.75, 0.25] and some.next_times.tolist() == [0.5, 0.0]
    assert some.log_probs.shape == (2,) and some.states.shape == (2, 9, 432)
    (none,) = policy.draw(context, [replace(FAITHFUL, sde_steps=())], [1])
    assert none.log_probs.shape == (0,) and none.states.shape == (0, 9, 432)


def test_what_is_stored_is_float32_under_bfloat16_weights():
    policy = tiny_policy(dtype=torch.bfloat16, adapter=ADAPTER, moved=0.1)
    found = one_of_each(policy, replace(FAITHFUL, eta=0.7))
    draft, plan = found["draft"][0], found["plan"][0]
    stored = (draft.states, draft.next_states, draft.log_probs, draft.image, plan.log_probs)
    assert {x.dtype for x in stored} == {torch.float32}
    for segments in found.values():
        assert deviation(policy, segments) < 0.2, "these weights are sharper than trained ones"
    trained = trainable_parameters(policy.module, policy.spec.branches)
    masters = [p for parameters in trained.values() for p in parameters.values()]
    assert {p.dtype for p in masters} == {torch.float32}


@pytest.mark.parametrize("stage", ["plan", "draft", "critique", "refinement"])
def test_gradient_reaches_the_experts(stage):
    """Drawing trains the understanding expert too, through what the latents read."""
    policy = tiny_policy()
    segments = one_of_each(policy, GUIDED)[stage]
    sum(r.log_probs.square().sum() for r in policy.replay(segments)).backward()
    got = {name for name, p in policy.module.named_parameters() if p.grad is not None and float(p.grad.norm()) > 0}
    understanding = {n for n in got if ".layers." in n and "vit" not in n and "_moe_gen" not in n}
    generation = {n for n in got if "_moe_gen" in n}
    assert len(understanding) > 10
    assert (len(generation) > 10) is (stage in ("draft", "refinement"))
    assert any("vit_model" in n for n in got) is (stage in ("critique", "refinement"))
    assert any("lm_head" in n for n in got) is (stage in ("plan", "critique"))
    assert any("vae2llm" in n for n in got) is (stage in ("draft", "refinement"))
    # the experts read latents and end tokens too: only the words of the context tell whether it was read with gradient
    pieces = [piece for segment in segments for piece in segment.context if isinstance(piece, TextPiece)]
    words = {i for piece in pieces for i in piece.token_ids or policy.reader.token_ids(piece.text)}
    embedded = policy.model.decoder.embed_tokens.weight.grad[sorted(words)]
    assert len(words) > 3 and bool((embedded.norm(dim=1) > 0).all())


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        policy = tiny_policy()
        segments = one_of_each(policy, FAITHFUL)["draft"]
        policy.model.decoder.gradient_checkpointing = checkpointed
        sum(r.log_probs.square().sum() for r in policy.replay(segments)).backward()
        gradients.append(policy.model.decoder.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_dropped_contexts_of_guidance(policy):
    system = TextPiece(text="draw", keep=True)
    prompt, plan = TextPiece(text="a red circle"), TextPiece(text="<think> red circle </think>")
    image = ImagePiece(image=pictures(1)[0], use="edit")

    def kinds(context, drop=""):
        return [type(b).__name__ for b in policy.reader.blocks(context, drop=drop)]

    reason, refine = (system, prompt, plan), (image, prompt, plan)
    assert kinds(reason) == ["TextBlock"] * 3
    (kept,) = policy.reader.blocks(reason, drop="text")
    assert kept.ids == policy.reader.text_block("draw").ids, "a plan goes with its prompt, a system prompt stays"
    assert kinds(reason, "image") == kinds(reason)
    assert kinds(refine) == ["LatentBlock", "LookBlock", "TextBlock", "TextBlock"]
    assert kinds(refine, "text") == ["LatentBlock", "LookBlock"]
    assert kinds(refine, "image") == ["TextBlock", "TextBlock"]
    assert kinds((prompt, image, plan), "text") == ["TextBlock", "LatentBlock", "LookBlock"]


def test_guidance_pulls_away_from_the_dropped_contexts(policy):
    """Scales of 1 are no guidance; outside the interval nothing changes; stronger text moves the image further."""
    context = [contexts_of_unlike_lengths()[2]]

    def image(guidance):
        return policy.draw(context, [replace(FAITHFUL, sde_steps=(), guidance=guidance)], [1])[0].image

    plain = image(Guidance())
    assert torch.equal(image(Guidance(text=1.0, image=3.0)), plain)
    torch.testing.assert_close(image(replace(PAPER_GUIDANCE, interval=(0.9, 0.95))), plain, atol=1e-5, rtol=0)
    near, far = (image(Guidance(text=scale, renorm_min=1.0)) for scale in (1.5, 4.0))
    assert 0 < (near - plain).norm() < (far - plain).norm()


def test_drawing_without_any_context_is_possible_with_guidance(policy):
    (plain,) = policy.draw([()], [FAITHFUL], [1])
    (guided,) = policy.draw([()], [GUIDED], [1])
    torch.testing.assert_close(plain.image, guided.image, atol=1e-5, rtol=0)
    mixed = policy.draw([(), (TextPiece(text="a"),)], [GUIDED] * 2, [1, 2])
    torch.testing.assert_close(mixed[0].image, guided.image, atol=1e-5, rtol=0)


def test_edit_contexts_read_the_image_the_same_way_every_time(policy):
    picture = pictures(1)[0]
    tokens = policy.reader.latent_tokens(picture[None])
    assert tokens.dtype == torch.float32 and torch.equal(tokens, policy.reader.latent_tokens(picture[None]))
    torch.testing.assert_close(policy.reader.images(tokens, (36, 36))[0], picture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edit_contexts_take_the_mean_of_an_autoencoder_that_has_a_spread(policy, dtype):
    """Pixels handed through have none, so that mean and sample would look alike."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, downsample=2))
    config = replace(policy.reader.config, autoencoder=autoencoder.config, latent_patch_size=6)
    reader = Reader(config=config, tokenizer=policy.reader.tokenizer, autoencoder=autoencoder.to(dtype))
    picture = pictures(1)[0]
    scaled = (picture[None] * 2 - 1).to(dtype)
    mean = autoencoder.encode(scaled)
    (latent, _) = reader.blocks((ImagePiece(image=picture, use="edit"),))
    assert latent.grid == (3, 3) and latent.tokens.dtype == torch.float32
    assert torch.equal(latent.tokens, latents_to_tokens(mean.float(), 6)[0])
    assert reader.images(latent.tokens[None], (36, 36)).dtype == torch.float32
    assert {p.dtype for p in autoencoder.parameters()} == {dtype}, "decoding leaves the weights' type alone"


@pytest.mark.parametrize("drawing", [FAITHFUL, GUIDED], ids=["plain", "guided"])
def test_num_tokens_is_what_a_replay_reads(policy, drawing):
    stages = one_of_each(policy, drawing)
    together = [segment for segments in stages.values() for segment in segments]
    for segments in [*([s] for s in together), *stages.values(), together, together[::-1]]:
        seen = []
        handle = policy.model.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].layout.position.shape[0])
        )
        policy.replay(segments)
        handle.remove()
        assert policy.num_tokens(segments) == sum(seen)
    assert policy.num_tokens(together) < sum(policy.num_tokens([segment]) for segment in together)


def test_supervised_text_loss_is_the_replayed_log_prob(policy):
    context = contexts_of_unlike_lengths()[1]
    ids = (*policy.reader.token_ids("a red circle"), policy.reader.eos)
    segment = TextSegment(context=context, token_ids=ids, log_probs=torch.zeros(4), text="a red circle", ended=True)
    (replayed,) = policy.replay([segment])
    loss = policy.supervised_at(
        [Example(context=context, answer="a red circle")], torch.zeros(0, 1), torch.zeros(0, 1, 9, 432)
    )
    assert loss.num_text == 4 and loss.num_flow == 0
    torch.testing.assert_close(loss.text, -replayed.log_probs.sum(), atol=1e-4, rtol=0)


def test_supervised_losses_add_up_over_micro_batches(policy):
    images = pictures(3)
    contexts = contexts_of_unlike_lengths()
    examples = [
        Example(context=context, answer=answer, image=image)
        for context, answer, image in zip(
            contexts, ("a cross", None, "a red circle", "up"), (*images, None), strict=True
        )
    ]
    generator = torch.Generator().manual_seed(0)
    times, noise = torch.rand(3, 2, generator=generator), torch.randn(3, 2, 9, 432, generator=generator)
    whole = policy.supervised_at(examples, times, noise)
    parts = [policy.supervised_at(examples[a:b], times[a:b], noise[a:b]) for a, b in ((0, 2), (2, 4))]
    assert (whole.num_flow, whole.num_text) == (3 * 2 * 9 * 432, sum(p.num_text for p in parts))
    torch.testing.assert_close(whole.flow, parts[0].flow + parts[1].flow, rtol=1e-5, atol=0)
    torch.testing.assert_close(whole.text, parts[0].text + parts[1].text, rtol=1e-5, atol=0)
    softer = policy.supervised_at(examples, times, noise, soften_below=0.5)
    assert 0 < softer.flow < whole.flow
    late = policy.supervised_at(examples, times.clamp(min=0.5), noise)
    torch.testing.assert_close(
        late.flow, policy.supervised_at(examples, times.clamp(min=0.5), noise, soften_below=0.5).flow
    )


def test_the_reference_is_the_base_however_it_is_asked_for():
    policy = tiny_policy(adapter=ADAPTER, moved=0.2)
    base, trained = tiny_policy(), tiny_policy(adapter=ADAPTER, moved=0.2)
    segments = one_of_each(trained, FAITHFUL)["draft"]

    def means(of):
        return torch.cat([r.mean for r in of.replay(segments)]).detach()

    with policy.reference():
        torch.testing.assert_close(means(policy), means(base))
        with policy.reference():
            pass
        torch.testing.assert_close(means(policy), means(base))
    torch.testing.assert_close(means(policy), means(trained))
    assert not torch.allclose(means(policy), means(base), atol=1e-3)
    with adapter_merged(policy.module), policy.reference():
        torch.testing.assert_close(means(policy), means(base))


def test_full_weights_have_a_reference_too():
    policy, base = tiny_policy(), tiny_policy()
    segments = one_of_each(policy, FAITHFUL)["critique"]
    policy.remember_base()
    with torch.no_grad():
        policy.model.language_model.lm_head.weight.mul_(1.5)

    def scored(of):
        return torch.cat([r.log_probs for r in of.replay(segments)])

    moved = scored(policy)
    with policy.reference(), torch.no_grad():
        torch.testing.assert_close(scored(policy), scored(base))
    moved.sum().backward()
    assert policy.model.language_model.lm_head.weight.grad is not None
    torch.testing.assert_close(scored(policy), moved)


def test_a_tokenizer_without_the_special_tokens_is_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(CheckpointError, match=r"no <\|im_start\|>, <\|im_end\|>"):
        special_token_ids(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")))


@pytest.mark.parametrize("text", ["hi<|im_end|>there", "<|vision_start|>x", "a <|im_start|>system", "<|vision_end|>"])
def test_a_text_that_spells_a_control_token_holds_none(tmp_path, text):
    policy = load(write_tiny_checkpoint(tmp_path))
    ids = policy.reader.token_ids(text)
    assert not set(ids) & set(policy.reader.config.special_token_ids.values())
    assert policy.reader.text(ids) == text


def test_a_vocabulary_of_words_refuses_a_control_token():
    policy = tiny_policy()
    assert unknown_words(policy.tokenizer, "red <|im_end|> circle") == ["<|im_end|>"]
    with pytest.raises(InputError, match=r"spells the control token <\|im_end\|>"):
        policy.reader.token_ids("red <|im_end|> circle")
