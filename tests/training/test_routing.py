"""Runs whose adapters are routed by task: on policy, resumed bit for bit, with every aggregator, gates that learn."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from r3_rl import registered
from r3_rl.balance.gates import by_place, gates_of, imbalance
from r3_rl.errors import CheckpointError
from r3_rl.observe.metrics import unknown_names
from r3_rl.observe.recorder import Recorder, new_run_folder, read_lines
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.routing import GATE
from r3_rl.types import STAGES
from tests.policy.tiny import PAPER_GUIDANCE, loop, tiny_policy
from tests.training.test_trainer import assert_equal_weights, make, run, untimed, weights

ROUTED, SPLIT = AdapterSettings(rank=2, routing="routed"), AdapterSettings(rank=2, routing="split")
KINDS = pytest.mark.parametrize("lora", [SPLIT, ROUTED], ids=["split", "routed"])
FULL = {"schedule": "full", "rounds": 1, "max_steps": 1}
CASES = pytest.mark.parametrize(
    ("lora", "shared_experts"), [(SPLIT, False), (ROUTED, False), (ROUTED, True)], ids=["split", "routed", "shared"]
)


@CASES
def test_a_run_is_on_policy_and_moves_what_it_trains(tmp_path, lora, shared_experts):
    trainer = make(
        tmp_path, lora=lora, policy=tiny_policy(shared_experts=shared_experts), max_steps=3, beta=0.01, image_beta=0.01,
        loop_settings=loop(guidance=PAPER_GUIDANCE), schedule="full", rounds=1, probe_every=1,
    )  # fmt: skip
    seen = []
    trainer.updater.on_gates = lambda step, found: seen.append((step, found))
    checked = trainer.self_check()
    assert max(checked.deviation.values()) < 1e-4
    before = weights(trainer)
    rows = run(trainer)
    for row in rows:
        assert unknown_names(row) == []
        assert row["ratio/text_deviation"] < 1e-4 and row["ratio/image_deviation"] < 1e-4
    moved = {n for n, p in weights(trainer).items() if not torch.equal(p, before[n])}
    parts = {n.split(".lora_B.")[1].split(".")[0] for n in moved if ".lora_B." in n}
    assert parts == {"plan", "draft", "critique", "refinement"} | ({"shared", "answer"} if lora is ROUTED else set())
    assert any(n.endswith(GATE) for n in moved) is (lora is ROUTED)
    if lora is SPLIT:
        assert not seen and "gate/plan" not in rows[0]
        return
    assert rows[0]["gate/plan"] == pytest.approx(0.4046, abs=1e-4) and abs(rows[0]["gate/imbalance"]) < 1e-6
    assert rows[2]["gate/plan"] != rows[0]["gate/plan"]
    assert [step for step, _ in seen] == [0, 1, 2]
    places = seen[2][1]["places"]
    assert set(places) == {f"{branch}/{i}" for branch in trainer.policy.spec.branches for i in (0, 1)}
    assert all(len(gate) == len(STAGES) and sum(gate[0]) == pytest.approx(1) for gate in places.values())


@KINDS
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, lora):
    options = {"max_steps": 4, "save_steps": 1, "lora": lora}
    whole = make(tmp_path / "whole", **options)
    rows = untimed(run(whole))
    again = make(tmp_path / "again", **options)
    resumed = untimed(run(again, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")))
    assert resumed[-2:] == rows[2:]
    assert_equal_weights(weights(whole), weights(again))
    other = make(tmp_path / "other", **(options | {"lora": AdapterSettings(rank=2)}))
    with pytest.raises(CheckpointError, match="not the adapter that this run trains"):
        run(other, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


@pytest.mark.parametrize("aggregator", [n for n in registered.names(registered.AGGREGATORS) if n != "sum"])
def test_every_aggregator_combines_the_gates_gradients_too(tmp_path, aggregator):
    pytest.importorskip("torchjd")
    trainer = make(
        tmp_path, lora=ROUTED, aggregator=aggregator, objectives="stage", schedule="full", rounds=1, max_steps=1
    )
    (row,) = run(trainer)
    assert row["grad_norm"] > 0 and {f"grad/weight_{s}" for s in ("plan", "draft", "critique")} <= set(row)
    assert unknown_names(row) == []


def test_micro_batches_of_mixed_tasks_add_up(tmp_path):
    found = []
    for budget in (64, 2**20):
        trainer = make(tmp_path / str(budget), lora=ROUTED, token_budget=budget, **FULL)
        run(trainer)
        found.append(weights(trainer))
    for name, one in found[0].items():
        assert (one - found[1][name]).abs().max() < 1e-4, name


def test_gates_have_a_rate_of_their_own_and_no_decay(tmp_path):
    trainer = make(tmp_path, lora=ROUTED, weight_decay=0.1, gate_learning_rate=0.3, image_learning_rate=1e-3)
    trainer.prepare()
    gates = {id(p) for n, p in trainer.policy.module.named_parameters() if n.endswith(GATE)}
    held = [g for g in trainer.learner.optimizer.param_groups if {id(p) for p in g["params"]} & gates]
    assert {(g["lr"], g["weight_decay"]) for g in held} == {(0.3, 0.0)}
    assert {id(p) for g in held for p in g["params"]} == gates
    others = [g for g in trainer.learner.optimizer.param_groups if {id(p) for p in g["params"]} - gates]
    assert {(g["lr"], g["weight_decay"]) for g in others} == {(1e-2, 0.1), (1e-3, 0.1)}
    run(trainer)


def test_the_balance_term_brings_parts_back_into_use(tmp_path):
    ends = {}
    for weight in (0.0, 100.0):
        trainer = make(tmp_path / str(weight), lora=ROUTED, gate_balance=weight, gate_learning_rate=0.2, max_steps=6)
        with torch.no_grad():
            for name, gate in trainer.policy.module.named_parameters():
                if name.endswith(GATE):
                    gate.copy_(torch.eye(5)[:1] * 3 + 0.1 * torch.eye(5))  # every task takes the planner's part
        assert imbalance(gates_of(trainer.policy.module)) > 2
        rows = run(trainer)
        ends[weight] = rows[-1]["gate/imbalance"]
    assert ends[100.0] < 1 < 2 < ends[0.0]


def test_gates_are_kept_in_the_run_s_folder(tmp_path):
    folder = new_run_folder(tmp_path, "run")
    recorder, policy = Recorder(folder), tiny_policy(adapter=ROUTED)
    for step in (1, 11):
        recorder.gates(step, by_place(gates_of(policy.module), policy.spec.branches))
    rows = read_lines(folder / "gates.jsonl").rows
    assert [row["step"] for row in rows] == [1, 11] and rows[0]["tasks"] == list(STAGES)
    Recorder(folder, resume_step=10)
    assert [json.loads(line)["step"] for line in (folder / "gates.jsonl").read_text().splitlines()] == [1]


def test_a_recipe_says_which_backbones_and_weights_can_be_routed():
    from r3_rl.errors import RecipeError
    from r3_rl.recipe_io import load_recipe

    assert load_recipe("shapes_r3", ["balance.routing=routed"]).balance.routing == "routed"
    with pytest.raises(RecipeError, match=r"balance\.routing.*tasks are told apart by their adapters"):
        load_recipe("shapes_r3", ["balance.routing=split", "lora.enabled=false"])
    assert replace(ROUTED, gate_temperature=0.5).gate_temperature == 0.5
