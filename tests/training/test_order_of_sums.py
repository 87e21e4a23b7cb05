"""Sums whose order hangs on which thread comes first: a busy machine changes their last bits, and with them the run."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.nodes import given_image
from r3_rl.policy.base import Example
from r3_rl.rollout.engine import Engine
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy
from tests.training.test_trainer import LORA, make, reddish, run


class SumsOfAnyOrder(TorchDispatchMode):
    """Notes calls of the operations that add from several threads at once, where they add twice to one place."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::index_put", "aten::index_put_", "aten::_unsafe_index_put", "aten::_index_put_impl_"):
            places, accumulate = args[1], args[3] if len(args) > 3 else (kwargs or {}).get("accumulate", False)
            if accumulate and repeated([p for p in places if p is not None and p.dtype != torch.bool]):
                self.found.append((func.name(), tuple(args[0].shape)))
        return func(*args, **(kwargs or {}))


def repeated(places):
    """Whether index tensors name a place twice."""
    if not places:
        return False
    rows = torch.stack([p.flatten() for p in torch.broadcast_tensors(*places)], 1)
    return len(rows.unique(dim=0)) < len(rows)


def test_indexing_with_a_row_twice_is_noticed():
    x = torch.zeros(3, 2, requires_grad=True)
    with SumsOfAnyOrder() as sums:
        x[torch.tensor([0, 2])].sum().backward()
        assert not sums.found
        x[torch.tensor([0, 2, 2])].sum().backward()
    assert sums.found == [("aten::index_put", (3, 2))]


@pytest.mark.parametrize("left_out", [(), (4, 8)], ids=["as many peers each", "more peers and fewer"])
def test_the_gradient_of_what_peers_share_is_summed_in_order(left_out):
    policy = tiny_policy()
    images = [given_image(p, i) for p, i in zip(PROMPTS, pictures(3), strict=True)]
    texts = [n.sample for n in Engine(policy=policy, settings=loop()).critiques(images, seed=5, each=3)]
    texts = [text for i, text in enumerate(texts) if i not in left_out]
    with SumsOfAnyOrder() as sums:
        torch.cat([r.log_probs for r in policy.replay(texts)]).sum().backward()
    assert not sums.found


def test_supervised_sums_are_in_order():
    policy, images = tiny_policy(), pictures(2)
    contexts = [(ImagePiece(image=images[0], use="edit"), TextPiece(text="draw a cross")), (TextPiece(text="a cross"),)]
    examples = [Example(context=c, answer="up", image=i) for c, i in zip(contexts, images, strict=True)]
    with SumsOfAnyOrder() as sums:
        loss = policy.supervised_at(examples, torch.full((2, 1), 0.5), torch.rand(2, 1, 9, 432))
        (loss.text + loss.flow).backward()
    assert not sums.found


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full weights"])
@pytest.mark.parametrize("schedule", ["tree", "full"])
def test_every_sum_of_a_run_is_in_order(tmp_path, schedule, lora):
    with SumsOfAnyOrder() as sums:
        run(make(tmp_path, reddish, schedule=schedule, lora=lora, max_steps=4, num_prompts=4, num_generations=4))
    assert not sums.found
