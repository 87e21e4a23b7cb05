"""LoRA by task: rows of unlike tasks in one pass, each as its task alone would have it, and as plain PEFT has it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from r3_rl.errors import CheckpointError, InputError
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.nodes import always_edits
from r3_rl.policy import adapters
from r3_rl.policy.adapters import AdapterSettings, adapter_disabled, adapter_merged
from r3_rl.policy.base import Sampling
from r3_rl.policy.routing import GATE, SHARED, routed_layers
from r3_rl.policy.task_adapters import save_task_adapter
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import DrawingPlan
from r3_rl.types import STAGES
from tests.policy.test_policy import FAITHFUL, GUIDED, deviation
from tests.policy.test_sharing import counted
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy

KINDS = pytest.mark.parametrize("kind", ["split", "routed"])
CASES = pytest.mark.parametrize(
    ("kind", "shared_experts"),
    [("split", False), ("routed", False), ("routed", True)],
    ids=["split", "routed", "shared"],
)
ASK, CHECK = TextPiece(text="a red circle"), TextPiece(text="check a red circle")
LOOK, EDIT = (ImagePiece(image=pictures(1)[0], use=use) for use in ("look", "edit"))
PLANNED = (ASK, TextPiece(text="a cross", token_ids=(5, 6)))


def settings(kind, **options):
    return AdapterSettings(rank=4, alpha=8.0, routing=kind, **options)


def routed(kind="routed", **options):
    return tiny_policy(adapter=settings(kind), moved=0.1, **options)


def flat(stages):
    return [segment for segments in stages.values() for segment in segments]


def stages_of(policy, drawing):
    """Two rollouts of every stage of the loop."""
    as_given = DrawingPlan(drawing=drawing)
    engine = Engine(policy=policy, settings=replace(loop(), draft=as_given, refine=as_given))
    drafts = engine.drafts(PROMPTS[:2], seed=3)
    critiques = [always_edits(c) for c in engine.critiques(drafts, seed=5)]
    refined = engine.refinements(critiques, seed=5)
    found = {"plan": [d.above for d in drafts], "draft": drafts, "critique": critiques, "refinement": refined}
    return {name: [node.sample for node in nodes] for name, nodes in found.items()}


def drawn(policy, contexts, tasks, drawing=GUIDED):
    return policy.draw(contexts, [replace(drawing, task=task) for task in tasks], range(len(contexts)))


@CASES
def test_a_fresh_adapter_is_plain_sharing_bit_for_bit(kind, shared_experts):
    plain = tiny_policy(adapter=settings("shared"), shared_experts=shared_experts)
    fresh = tiny_policy(adapter=settings(kind), shared_experts=shared_experts)
    for merged in (False, True):
        found = []
        for policy in (plain, fresh):
            with adapter_merged(policy.module) if merged else torch.no_grad():
                found.append(flat(stages_of(policy, GUIDED)))
        assert [s.task for s in found[1]] == [s.task for s in found[0]]
        assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(*found, strict=True))
    if kind == "routed":
        theirs = adapters.adapted_layers(plain.module)
        for name, layer in routed_layers(fresh.module).items():
            assert torch.equal(layer.lora_A[SHARED].weight, theirs[name].lora_A["default"].weight)
            assert torch.allclose(layer.gates().diagonal(), torch.tensor(0.4046), atol=1e-4)


@CASES
def test_every_stage_is_scored_as_it_was_made_alone_and_all_in_one_batch(kind, shared_experts):
    policy = routed(kind, shared_experts=shared_experts)
    with adapter_merged(policy.module):
        stages = stages_of(policy, GUIDED)
        assert deviation(policy, flat(stages)) < 1e-4
    for name, segments in stages.items():
        assert {s.task for s in segments} == {name}
        assert deviation(policy, segments) < 1e-4, name
    assert deviation(policy, flat(stages)) < 1e-4, "beside the weights, in one pass"
    wrong = [replace(s, task="critique") for s in stages["plan"]]
    assert deviation(policy, wrong) > 1e-3, "another task's weights would say something else"


def test_images_of_unlike_tasks_are_drawn_together_as_alone():
    policy = routed()
    contexts, tasks = [PLANNED, (EDIT, ASK), (ASK,), (EDIT, CHECK)], ["draft", "refinement", "draft", "refinement"]
    for merged in (False, True):
        with adapter_merged(policy.module) if merged else torch.no_grad():
            together = drawn(policy, contexts, tasks)
            for row, task in enumerate(tasks):
                how = replace(GUIDED, task=task)
                (alone,) = policy.draw([contexts[row]], [how], [row])
                assert (alone.image - together[row].image).abs().max() < 1e-5
            assert deviation(policy, together) < 1e-4
    swapped = drawn(policy, contexts, tasks[1:] + tasks[:1])
    assert all((a.image - b.image).abs().max() > 1e-3 for a, b in zip(together, swapped, strict=True))


def test_what_one_task_has_read_is_no_other_task_s():
    """The same words and image, read once a task: by plain LoRA once in all."""
    for policy, times in ((tiny_policy(), 1), (routed(), 2)):
        with counted(policy) as count:
            drawn(policy, [(EDIT, ASK)] * 4, ["draft", "refinement"] * 2, FAITHFUL)
        assert count.cached == times * policy.reader.num_tokens((EDIT, ASK))
    policy = routed()
    (plan,) = policy.write([(ASK,)], Sampling(max_new_tokens=5, task="plan"), [0])
    planned = (ASK, TextPiece(text=plan.text, token_ids=plan.token_ids))
    (draft,) = drawn(policy, [planned], ["draft"], FAITHFUL)
    together, apart = policy.num_tokens([plan, draft]), policy.num_tokens([plan]) + policy.num_tokens([draft])
    assert together == apart, "a draft's plan is read by the draft's adapter, so it takes a row of its own"
    plain = tiny_policy()
    assert plain.num_tokens([plan, draft]) < plain.num_tokens([plan]) + plain.num_tokens([draft])


@CASES
def test_a_task_s_adapter_is_the_same_in_plain_peft(kind, shared_experts, tmp_path):
    policy = routed(kind, shared_experts=shared_experts)
    with torch.no_grad():
        stages = stages_of(policy, GUIDED)
        (answer,) = policy.write([(LOOK, ASK)], Sampling(max_new_tokens=6, task="answer"), [1])
        stages["answer"] = [answer]
    for task in STAGES:
        save_task_adapter(policy.module, task, tmp_path / task, fingerprint="f", recipe_text="version: 1\n")
        base = tiny_policy(shared_experts=shared_experts)
        PeftModel.from_pretrained(base.module, str(tmp_path / task))
        again = base.replay([replace(s) for s in stages[task]])
        for new, mine, old in zip(again, policy.replay(stages[task]), stages[task], strict=True):
            assert (new.log_probs - mine.log_probs).abs().max() < 1e-5
            assert ((new.log_probs - old.log_probs).exp() - 1).abs().max() < 1e-4
    with pytest.raises(InputError, match="no adapter that is routed"):
        save_task_adapter(tiny_policy(adapter=settings("shared")).module, "plan", tmp_path / "no", fingerprint="f")


def gradients(policy, segments):
    sum(r.log_probs.square().sum() for r in policy.replay(segments)).backward()
    found = {n: p.grad for n, p in policy.module.named_parameters() if p.requires_grad}
    policy.module.zero_grad(set_to_none=True)
    return found


def test_the_gradient_is_the_same_on_the_sums_and_beside_the_weights_and_computed_again():
    policy = routed()
    with torch.no_grad():
        segments = flat(stages_of(policy, GUIDED))
    beside = gradients(policy, segments)
    with adapter_merged(policy.module):
        merged = gradients(policy, segments)
    policy.checkpoint_activations(True)
    again = gradients(policy, segments)
    gates = [n for n in beside if n.endswith(GATE)]
    assert len(gates) == len(routed_layers(policy.module)) and all(beside[n].abs().max() > 0 for n in gates[:-1])
    for name, grad in beside.items():
        size = grad.abs().max()
        assert (merged[name] - grad).abs().max() <= 1e-3 * size + 1e-6, name
        assert torch.equal(again[name], grad), name


def test_split_adapters_learn_from_their_own_task_alone():
    policy = routed("split")
    with torch.no_grad():
        stages = stages_of(policy, FAITHFUL)
    for merged in (False, True):
        with adapter_merged(policy.module) if merged else torch.enable_grad():
            found = gradients(policy, stages["critique"])
        touched = {n for n, g in found.items() if g is not None}
        assert touched and all(".critique." in n for n in touched), "what nobody learned from keeps no gradient"


def test_the_reference_is_the_base_whatever_the_task():
    policy, base = routed(), tiny_policy()
    with torch.no_grad():
        segments = flat(stages_of(policy, GUIDED))
        with policy.reference():
            ours = [r.log_probs for r in policy.replay(segments)]
        theirs = [r.log_probs for r in base.replay(segments)]
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(ours, theirs, strict=True))


@KINDS
def test_a_saved_adapter_comes_back_bit_for_bit_and_fits_nothing_else(kind, tmp_path):
    policy = routed(kind)
    adapters.save_adapter(policy.module, tmp_path, fingerprint="base", recipe_text=None)
    again = adapters.load_adapter(tiny_policy().module, tmp_path, fingerprint="base")
    own, theirs = policy.module.state_dict(), again.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    assert not any(p.requires_grad for name, p in again.named_parameters() if "lora_" in name)
    prepared = tiny_policy(adapter=settings(kind))
    adapters.load_adapter(prepared.module, tmp_path, fingerprint="base")
    assert all(p.requires_grad for name, p in prepared.module.named_parameters() if "lora_" in name)
    for other in (settings("shared"), settings("routed" if kind == "split" else "split")):
        with pytest.raises(CheckpointError, match=r"not the adapter that this run trains: .*routing"):
            adapters.load_adapter(tiny_policy(adapter=other).module, tmp_path, fingerprint="base")
    with pytest.raises(InputError, match="something else to the weights for each task"):
        adapters.merge(policy.module)
    adapters.save_adapter(tiny_policy(adapter=settings("shared")).module, tmp_path, fingerprint="base")
    adapters.load_adapter(tiny_policy(adapter=settings("shared")).module, tmp_path, fingerprint="base")


def test_who_asks_says_for_what():
    policy = routed()
    with pytest.raises(InputError, match="was asked for no task"):
        policy.write([(ASK,)], Sampling(max_new_tokens=2), [0])
    with pytest.raises(InputError, match="was asked for 'dream'"):
        policy.draw([(ASK,)], [replace(FAITHFUL, task="dream")], [0])
    with adapter_disabled(policy.module), pytest.raises(InputError, match="no task"):
        policy.write([(ASK,)], Sampling(max_new_tokens=2), [0])


def test_a_bfloat16_base_has_gates_and_parts_in_float32():
    policy = tiny_policy(adapter=settings("routed"), moved=0.1, dtype=torch.bfloat16)
    parts = [p for name, p in policy.module.named_parameters() if "lora_" in name]
    assert {p.dtype for p in parts} == {torch.float32}
    with adapter_merged(policy.module):
        assert deviation(policy, flat(stages_of(policy, GUIDED))) < 0.3
