"""Two processes are one run: the same losses, gradients and adapter; each with its own noise and node pool (traps 8, 17
and 21). torchrun starts them where the start is what is tested, else they are forks of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from r3_rl import ranks
from r3_rl.errors import InputError, MissingPackageError
from r3_rl.nodes_io import from_bytes
from r3_rl.observe.recorder import read_lines
from r3_rl.policy.bagel.tiny import write_tiny_checkpoint
from r3_rl.training.checkpoint import load_pool
from r3_rl.training.config import R3Config
from r3_rl.training.zero import engine_settings
from tests.conftest import REPOSITORY
from tests.training.processes import fork, main
from tests.training.test_trainer import make, reddish

pytestmark = [pytest.mark.processes, pytest.mark.slow]

BRANCH = {"plan": 2, "draft": 2, "critique": 2, "refinement": 2}
RUN = {
    "schedule": "draft_only", "num_prompts": 4, "beta": 0.01, "image_beta": 0.01, "probe_every": 2, "max_steps": 3,
    "num_generations": None, "branch": BRANCH,
}  # fmt: skip
ZERO = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the processes left."""

    numbers: list[dict[str, Any]]
    tensors: list[Any]


def found(folder: Path, count: int) -> Found:
    return Found(
        numbers=[json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)],
        tensors=[torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)],
    )


def torchrun(folder: Path, *words: str) -> str:
    """What two processes of a module print."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def largest_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Found:
    folder = tmp_path_factory.mktemp("alone")
    fork(1, folder, "train", RUN)
    return found(folder, 1)


def assert_same_run(two: Found, alone: Found) -> None:
    """Rows and adapter are those of one process, and equal in both."""
    assert [numbers["world_size"] for numbers in two.numbers] == [2, 2]
    assert two.numbers[0]["rows"] == two.numbers[1]["rows"], "numbers are those of all processes"
    assert largest_gap(*two.tensors) == 0
    assert largest_gap(two.tensors[0], alone.tensors[0]) < 1e-4
    for ours, single in zip(two.numbers[0]["rows"], alone.numbers[0]["rows"], strict=True):
        assert ours.pop("ranks/shared_noise") == 0, "each has its own noise"
        assert ours.keys() == single.keys()
        for name in ("loss", "grad_norm", "reward", "refine/draft_score", "kl", "num_tokens", "tree/pool_size",
                     "image/count", "completions/max_length", "completions/mean_length"):  # fmt: skip
            assert ours[name] == pytest.approx(single[name], rel=1e-3, abs=1e-6), name


def test_two_processes_are_the_run_of_one(tmp_path, alone):
    fork(2, tmp_path, "train", RUN)
    two = found(tmp_path, 2)
    assert {numbers["learner"] for numbers in two.numbers} == {"Learner"}
    assert_same_run(two, alone)
    for step, seconds in enumerate(two.numbers[0]["step_s"]):
        own = [numbers["own_s"][step] for numbers in two.numbers]
        assert 0 < seconds <= max(own), "a step takes as long as its slowest process"
    first, second = (numbers["seen"] for numbers in two.numbers)
    for step, single in enumerate(alone.numbers[0]["seen"]):
        for kind in ("prompts", "plans"):
            assert first[step][kind] + second[step][kind] == single[kind], "each has its part of one batch"
        assert first[step]["pixels"] + second[step]["pixels"] == pytest.approx(single["pixels"], abs=0.01)
        assert not set(first[step]["pixels"]) & set(second[step]["pixels"])


def test_processes_that_draw_the_same_noise_are_stopped(tmp_path):
    """Both end at the same step, though the first one alone looks."""
    fork(2, tmp_path, "train", {**RUN, "max_steps": 6, "same_noise": True})
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [numbers["stopped"] for numbers in seen] == ["equal_noise", "equal_noise"]
    assert [[row["ranks/shared_noise"] for row in numbers["rows"]] for numbers in seen] == [[1.0], [1.0]]


def test_supervised_steps_divide_over_the_processes(tmp_path):
    """Texts alone, since every process has a noise of its own: the same losses and the same adapter."""
    options = {"supervised": {"critique": 3, "plan": 2}, "num_prompts": 2, "max_steps": 3}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        fork(count, tmp_path / str(count), "train", options)
    alone, two = found(tmp_path / "1", 1), found(tmp_path / "2", 2)
    assert two.numbers[0]["rows"] == two.numbers[1]["rows"] and largest_gap(*two.tensors) == 0
    assert 0 < largest_gap(two.tensors[0], alone.tensors[0]) < 1e-4, "sums in another order, not other examples"
    for ours, single in zip(two.numbers[0]["rows"], alone.numbers[0]["rows"], strict=True):
        for name in ("loss", "text/loss", "grad_norm"):
            assert ours[name] == pytest.approx(single[name], rel=1e-3), name


def test_torchrun_trains_a_recipe(tmp_path):
    """The command of docs/bagel.md; the first process alone speaks and writes the run."""
    write_tiny_checkpoint(tmp_path / "tiny")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red cup"}\n{"prompt": "two dogs"}\n')
    places = ["model.path=tiny", "data.kind=jsonl", "data.path=prompts.jsonl", "training.save_steps=3"]
    printed = torchrun(tmp_path, "r3_rl", "train", "bagel_smoke", *places)
    assert printed.count("2 processes of 1 prompts") == printed.count("run folder") == printed.count("report ") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in read_lines(run / "metrics.jsonl").rows] == [1, 2, 3]
    assert {"rng_state_0.pth", "rng_state_1.pth", "node_pool_1.json"} <= {
        p.name for p in (run / "checkpoints" / "checkpoint-3").iterdir()
    }
    assert (run / "adapter" / "adapter_model.safetensors").is_file() and (run / "report.html").is_file()


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed")
def test_deepspeed_shards_the_same_run(tmp_path, alone):
    """ZeRO-2, and a resumed run that goes on as the uninterrupted one."""
    options = {**RUN, "deepspeed": ZERO, "save_steps": 2}
    fork(2, tmp_path, "train", options, 2)
    two = found(tmp_path, 2)
    assert {numbers["learner"] for numbers in two.numbers} == {"DeepSpeedLearner"}
    assert_same_run(two, alone)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    states = sorted(p.name for p in checkpoint.glob("global_step2/*"))
    assert sum("optim_states" in name for name in states) == 2, "each process keeps its part of the optimiser"
    held = torch.load(checkpoint / "global_step2" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert held and all("lora_" in name for name in held), "the base is not saved"
    again = found(tmp_path / "again", 2)
    assert largest_gap(again.tensors[0], two.tensors[0]) == 0
    assert again.numbers[1]["pool"] == two.numbers[1]["pool"]


def test_a_resumed_run_of_two_is_the_uninterrupted_one(tmp_path):
    """The tree, whose processes choose nodes from pools of their own."""
    options = {**RUN, "schedule": "tree", "scorer": "reddish", "max_steps": 4, "save_steps": 2, "depth": 2}
    fork(2, tmp_path, "train", options, 2)
    whole, again = found(tmp_path, 2), found(tmp_path / "again", 2)
    folder = tmp_path / "run" / "checkpoint-2"
    names = {p.name for p in folder.iterdir()}
    assert {"node_pool.json", "node_pool_1.json", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= names
    assert largest_gap(again.tensors[0], whole.tensors[0]) == 0
    for first, second in zip(whole.numbers, again.numbers, strict=True):
        assert second["pool"] == first["pool"] and second["rows"][-2:] == first["rows"][-2:]
    assert whole.numbers[0]["pool"] != whole.numbers[1]["pool"], "each has its own groups"
    (tmp_path / "one").mkdir()
    fork(1, tmp_path / "one", "resume", options, str(folder))
    alone = found(tmp_path / "one", 1)
    assert len(alone.numbers[0]["rows"]) == 4 and alone.numbers[0]["rows"][:2] == whole.numbers[0]["rows"][:2]
    pools = [from_bytes((folder / f"{name}.safetensors").read_bytes()) for name in ("node_pool", "node_pool_1")]
    one = make(tmp_path / "deal", **{**options, "scorer": reddish})
    load_pool(one.schedule.pool, folder, saved_by=2)
    dealt = [[node.score for node in group] for group in one.schedule.pool.groups]
    assert sorted(chain(*dealt)) == sorted(node.score for pool in pools for node in pool), "nothing is lost"
    sizes = [json.loads((folder / f"{name}.json").read_text()) for name in ("node_pool", "node_pool_1")]
    assert sorted(map(len, dealt)) == sorted(chain(*sizes))


@pytest.mark.parametrize(
    ("share", "aggregator", "probe_every"),
    [
        *(("texts_and_images", *how) for how in (("sum", 0), ("sum", 1), ("mgda", 0))),
        *(("none", *how) for how in (("sum", 0), ("mgda", 0), ("gradvac", 0))),
        ("texts", "sum", 0),
    ],
)
def test_ragged_shares_add_up_and_every_rank_has_as_many_passes(tmp_path, share, aggregator, probe_every):
    """Texts in one process and images in the other; everything, or texts alone, in one and nothing in the other."""
    if aggregator != "sum":
        pytest.importorskip("torchjd")
    alone, two = share_of_one_and_of_two(tmp_path, share, aggregator, probe_every)
    assert largest_gap(*two.tensors) == 0
    for name, expected in alone.tensors[0].items():
        assert torch.allclose(two.tensors[0][name], expected, rtol=1e-4, atol=1e-5), name


def share_of_one_and_of_two(folder: Path, share: str, *how: Any) -> tuple[Found, Found]:
    """What one process and two find of the same credits; their numbers agree, and nobody does less than another."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    main(str(folder / "one"), "add_up", share, *how)
    fork(2, folder / "two", "add_up", share, *how)
    alone, two = found(folder / "one", 1), found(folder / "two", 2)
    first, second = two.numbers
    assert first == second and first["touched"] == alone.numbers[0]["touched"], "a dummy leaves nothing behind"
    assert first["passes"] > 1
    for name, value in alone.numbers[0]["numbers"].items():
        assert first["numbers"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    return alone, two


def test_what_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(InputError, match="3 prompts do not divide over 2 processes"):
        make(tmp_path, num_prompts=3)
    with pytest.raises(InputError, match="another deviation in every process"):
        make(tmp_path, scale_rewards="batch")


def test_settings_of_deepspeed_that_cannot_be_kept(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"stage 4: use 1, 2 or 3"):
        R3Config("out", deepspeed={"zero_optimization": {"stage": 4}})
    args = R3Config("out", deepspeed=ZERO, max_grad_norm=0.5)
    monkeypatch.setattr("r3_rl.training.zero.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'r3-rl\[deepspeed\]'"):
        engine_settings(args)
    monkeypatch.setattr("r3_rl.training.zero.find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"needs a launcher.*torchrun"):
        engine_settings(args)
    monkeypatch.setenv("RANK", "0")
    found = engine_settings(args)
    assert found["gradient_clipping"] == 0.5 and found["train_batch_size"] == 1, '"auto" is what the trainer knows'
    assert found["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(("optim", "package"), [("paged_adamw_8bit", "bitsandbytes"), ("adamw_torch_8bit", "torchao")])
def test_an_optimiser_of_another_package_names_what_installs_it(tmp_path, optim, package):
    if find_spec(package) is not None:
        pytest.skip(f"{package} is here")
    with pytest.raises(MissingPackageError, match=f"'{optim}' needs {package}; pip install {package}"):
        make(tmp_path, optim=optim)
