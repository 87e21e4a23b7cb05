"""Full weights whose optimiser lies in parts: the run of one process, with a gradient that is never held whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tests.policy.tiny as tiny
from r3_rl.errors import CheckpointError, InputError, RunError
from r3_rl.training.batcher import Batcher
from r3_rl.training.shards import Shards
from r3_rl.training.update import LossSettings, accumulate
from tests.training.processes import SHARES, fork, whole_policy
from tests.training.rollouts import step_credits
from tests.training.test_processes import RUN, found, largest_gap, share_of_one_and_of_two
from tests.training.test_trainer import make, run

pytestmark = [pytest.mark.processes, pytest.mark.slow]

# AdamW's first steps are lr * sign(gradient): an epsilon above rounding, or noise around zero would decide them
FULL = {**RUN, "full": "float32", "learning_rate": 1e-3, "adam_epsilon": 1e-6, "weight_decay": 0.1}
NUMBERS = ("loss", "grad_norm", "reward", "kl", "image/kl", "num_tokens")


def start(dtype: str) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in whole_policy(dtype).module.named_parameters() if p.requires_grad}


def saved(folder: Path, dtype: str) -> dict[str, Tensor]:
    stored = load_file(folder / "model.safetensors")
    return {name: stored[name] for name in start(dtype)}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return float(torch.stack([(a[n].double() - b[n].double()).square().sum() for n in a]).sum().sqrt())


def gradients(policy) -> dict[str, Tensor | None]:
    return {n: p.grad for n, p in policy.module.named_parameters() if p.requires_grad}


def joined(parts: list[list[Tensor | None]], policy) -> list[Tensor]:
    """What the processes hold of every weight, as whole weights."""
    weights = [p for p in policy.module.parameters() if p.requires_grad]
    pairs = zip(weights, zip(*parts, strict=True), strict=True)
    return [torch.cat([*pieces])[: w.numel()].view_as(w) for w, pieces in pairs if pieces[0] is not None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_with_parts_are_the_run_of_one(tmp_path, dtype):
    """In float32 of one that holds the optimiser whole; and a resumed run goes on as the uninterrupted one."""
    alone = {**FULL, "full": dtype, "optimizer_parts": int(dtype == "bfloat16"), "save_steps": 1}
    alone["plain_products"] = True  # oneDNN's round by the size of a batch, which is not what is compared here
    (tmp_path / "alone").mkdir()
    fork(1, tmp_path / "alone", "train", alone)
    fork(2, tmp_path, "train", {**alone, "optimizer_parts": 2}, 2)
    one, two, again = found(tmp_path / "alone", 1), found(tmp_path, 2), found(tmp_path / "again", 2)
    assert {n["learner"] for n in two.numbers} == {"ShardLearner"}
    assert largest_gap(*two.tensors) == 0 == largest_gap(again.tensors[0], two.tensors[0])
    assert again.numbers[1]["rows"][-1] == two.numbers[1]["rows"][-1]
    # bfloat16 rounds the gradients of a pass: another packing alone moves the first step by a sixth; later texts differ
    num_steps, gap = (3, 1e-4) if dtype == "float32" else (1, 0.1)
    ours, single = (saved(f / "run" / f"checkpoint-{num_steps}", dtype) for f in (tmp_path, tmp_path / "alone"))
    assert distance(ours, single) < gap * distance(single, start(dtype))
    rows = zip(two.numbers[0]["rows"][:num_steps], one.numbers[0]["rows"][:num_steps], strict=True)
    for row, expected in rows:
        for name in NUMBERS if dtype == "float32" else ("grad_norm", "reward", "num_tokens"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    folder = tmp_path / "run" / "checkpoint-2"
    assert load_file(folder / "model.safetensors").keys() == whole_policy(dtype).module.state_dict().keys()
    masters = load_file(folder / "masters_1.safetensors")
    assert {m.dtype for m in masters.values()} == {torch.float32}
    assert sum(m.numel() for m in masters.values()) == pytest.approx(
        sum(w.numel() for w in start(dtype).values()) / 2, rel=1e-3
    )
    single = make(tmp_path / "one", policy=whole_policy(dtype), lora=None, optimizer_parts=1, num_prompts=2)
    with pytest.raises(CheckpointError, match="saved by 2 processes and is to be resumed by 1"):
        single.train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize(("share", "aggregator"), [*((share, "sum") for share in SHARES), ("none", "mgda")])
def test_ragged_shares_add_up_and_nobody_waits(tmp_path, share, aggregator):
    """Texts in one process and images in the other; everything, or texts alone, in one and nothing in the other."""
    if aggregator != "sum":
        pytest.importorskip("torchjd")
    alone, two = share_of_one_and_of_two(tmp_path, share, aggregator, 1, True)
    policy = whole_policy("float32")
    pairs = zip(joined(two.tensors, policy), joined(alone.tensors, policy), strict=True)
    assert sum(torch.allclose(ours, single, rtol=1e-4, atol=1e-5) for ours, single in pairs) == sum(
        alone.numbers[0]["touched"]
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_is_never_held_whole(monkeypatch, checkpointing):
    """One layer's at a time, though a replay runs every layer several times; and it is the plain gradient."""
    deep = replace(tiny.CONFIG, llm=replace(tiny.CONFIG.llm, num_hidden_layers=5))
    monkeypatch.setattr(tiny, "CONFIG", deep)
    policy = whole_policy("float32")
    policy.model.decoder.gradient_checkpointing = checkpointing
    credits, settings = step_credits(policy), LossSettings()
    batcher = Batcher(policy=policy, token_budget=64)
    accumulate(batcher, credits, settings, backward=Tensor.backward)
    plain = gradients(policy)
    policy.module.zero_grad(set_to_none=True)
    shards = Shards(policy.module, policy.layered, parts=1, keep_base=False)
    waiting: list[int] = []
    take = shards._take

    def watched(*arguments):
        take(*arguments)
        waiting.append(sum(any(s.waiting is not None for s in layer) for layer in shards.layers))

    monkeypatch.setattr(shards, "_take", watched)
    with shards.collecting():
        accumulate(batcher, credits, settings, backward=Tensor.backward)
    assert set(waiting) == {1}
    assert all(p.grad is None for p in policy.module.parameters())
    for name, weight in policy.module.named_parameters():
        if weight.requires_grad:
            found, expected = shards.masters[weight].grad, plain[name]
            assert (found is None) is (expected is None), name
            if expected is not None:
                assert torch.allclose(found.view_as(weight), expected, rtol=1e-4, atol=1e-6), name


def test_the_self_check_needs_no_whole_gradient_either(tmp_path):
    plain, sharded = (
        make(tmp_path, policy=whole_policy("float32"), lora=None, optimizer_parts=parts) for parts in (0, 1)
    )
    weight, seen = next(iter(sharded.shards.masters)), []
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    expected, found = plain.self_check(), sharded.self_check()
    assert found.deviation == expected.deviation and set(seen) <= {None}
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert all(m.grad is None for m in sharded.shards.masters.values())


def test_parts_that_are_nobodys_are_refused(tmp_path):
    full = {"policy": whole_policy("bfloat16"), "lora": None}
    with pytest.raises(InputError, match="2 optimizer_parts for 1 processes"):
        make(tmp_path, **full, optimizer_parts=2).train()
    with pytest.raises(InputError, match="is for full weights"):
        make(tmp_path, optimizer_parts=1)
    with pytest.raises(InputError, match="more than them is trained"):
        make(tmp_path, policy=tiny.tiny_policy(), lora=None, optimizer_parts=1)
    plain = make(tmp_path / "plain", policy=whole_policy("float32"), lora=None, save_steps=1, max_steps=1)
    plain.train()
    sharded = make(tmp_path, policy=whole_policy("float32"), lora=None, optimizer_parts=1)
    with pytest.raises(CheckpointError, match=r"was not saved with training\.shard_optimizer"):
        sharded.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1"))
    options = {"lora": None, "save_steps": 1, "max_steps": 1}
    make(tmp_path / "parts", policy=whole_policy("float32"), optimizer_parts=1, **options).train()
    whole = make(tmp_path, policy=whole_policy("float32"), **options)
    with pytest.raises(CheckpointError, match=r"checkpoint-1 holds no optimizer\.pt; was the optimiser in shards"):
        whole.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-1"))


def test_a_reference_without_a_base_is_refused(tmp_path):
    """It was the trained policy itself, without a word."""
    trainer = make(tmp_path, policy=whole_policy("float32"), lora=None, optimizer_parts=1, max_steps=1)
    run(trainer)
    with pytest.raises(RunError, match=r"no reference policy.*base was not kept; call policy\.remember_base"):
        trainer.policy.reference().__enter__()
    with pytest.raises(RunError, match="base of the sharded weights was not kept"):
        trainer.shards.reference(trainer.policy).__enter__()


def test_a_policy_of_which_nothing_is_trained_is_its_own_base():
    policy = whole_policy("float32")
    policy.module.requires_grad_(False)
    with policy.reference():
        pass
