"""Export: what is written reads back as the policy that was trained, and the card says what was measured."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from r3_rl.errors import CheckpointError, InputError, RunError
from r3_rl.export import export
from r3_rl.observe.lock import LOCK
from r3_rl.policy import adapters
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.bagel.checkpoint import fingerprint, load_bagel
from r3_rl.training.manifest import aside, checked, complete
from tests.observe.runs import evaluation, fill_run
from tests.policy.tiny_bagel import tiny_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("base"))


def trained(base, folder, *, step=0.05, routing="shared"):
    """The part of answers, where there is one, is untrained."""
    model = adapters.attach(load_bagel(base), AdapterSettings(rank=2, routing=routing), BAGEL.spec.branches, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapters.adapted_layers(model).values():
            for name, part in layer.lora_B.items():
                if name != "answer":
                    part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * step)
    return adapters.save_adapter(model, folder, fingerprint=fingerprint(base))


@pytest.fixture
def run(tmp_path, base):
    folder = fill_run(tmp_path / "runs", steps=10)
    recipe = f"version: 1\nmodel: {{kind: bagel, path: {base}}}\nlora: {{rank: 2}}\nrewards: [{{scorer: shapes}}]\n"
    (folder / "recipe.resolved.yaml").write_text(recipe)
    trained(base, folder / "adapter")
    return folder


def test_a_run_becomes_an_adapter_with_a_card_that_loads_as_it_says(run, base, capsys, python):
    done = export(run)
    assert done.folder == run / "adapter" and (run / LOCK).is_file(), "nobody else wrote the run"
    assert done.difference == 0 < done.change
    assert "largest difference from the policy 0; the adapter moves outputs by" in capsys.readouterr().out
    weights = {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert {path.name for path in done.folder.iterdir()} == weights | {"recipe.resolved.yaml", "README.md", "pictures"}
    card = (done.folder / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.S)
    lines = lines.replace('"base"', repr(str(base))).replace('"adapter"', repr(str(done.folder)))
    assert python(lines + "print(sum('lora' in name for name, _ in model.named_parameters()))") == "56\n"


def test_the_card_says_what_was_changed_on_resume(run):
    row = {"step": 4, "recipe": "recipe.change-1.yaml", "changes": {"training.learning_rate": [0.002, 0.001]}}
    (run / "recipe.changes.jsonl").write_text(json.dumps(row) + "\n")
    export(run)
    card = (run / "adapter" / "README.md").read_text()
    assert "- changed when it was resumed: from step 4 on training.learning\\_rate: 0.002 -\\> 0.001" in card


def test_the_card_says_what_was_measured(run):
    export(run)
    card = (run / "adapter" / "README.md").read_text()
    draft = evaluation()["phases"]["after"]["draft"]
    assert f"{100 * draft['mean']:.1f} % ({100 * draft['low']:.1f} to {100 * draft['high']:.1f})" in card
    assert re.search(r"\| Draft right \(first image.*\|.*\| \+?\S+ points \(.* to .*\) \| 320 \|", card)
    assert json.loads((run / "adapter" / "base.json").read_text())["fingerprint"] in card
    assert "- scorers: shapes" in card and "- adapter: rank 2" in card
    assert "| color attribution (after all rounds) |" in card
    greedy = [evaluation()["phases"]["before"][f"{name}_greedy"]["mean"] for name in ("draft", "final")]
    assert (
        "untrained base draws {:.1f} % of the prompts right at first, and {:.1f} %".format(*(100 * g for g in greedy))
        in card
    )
    assert "<script>" not in card
    pictures = re.findall(r"\]\((pictures/\d\.png)\)", card)
    assert len(pictures) == 4 and all((run / "adapter" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    assert card.index("Random of step 10") < card.index("Best of step 10") < card.index("Worst of step 10")


def test_merged_weights_load_without_peft_and_give_the_same_outputs(run, base):
    done = export(run, merge=True)
    assert done.folder == run / "merged"
    assert done.difference < 1e-5 < done.change
    merged, plain = load_bagel(done.folder).state_dict(), load_bagel(base).state_dict()
    assert merged.keys() == plain.keys()
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    added = load_file(run / "adapter" / "adapter_model.safetensors")
    a, b = (added[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(merged[name], plain[name] + 16 * b @ a, atol=1e-6, rtol=0)
    assert torch.equal(merged["vae2llm.weight"], plain["vae2llm.weight"])
    assert (done.folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert 'load("merged").module' in (done.folder / "README.md").read_text()
    with pytest.raises(InputError, match="merged: already there and not empty"):
        export(run, merge=True)


def test_an_adapter_alone_goes_elsewhere_and_nothing_is_said_to_be_measured(tmp_path, base):
    adapter = trained(base, tmp_path / "mine")
    done = export(adapter, tmp_path / "out", base=base)
    assert done.difference == 0
    assert "Nothing was measured" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="says which base the adapter belongs to"):
        export(adapter)


def test_a_checkpoint_goes_elsewhere_and_is_left_as_it_was_saved(run, base, tmp_path):
    folder = run / "checkpoints" / "checkpoint-4"
    complete(trained(base, aside(folder)), folder, step=4, num_processes=1)
    for out in (None, folder):
        with pytest.raises(InputError, match=r"checkpoint-4: a checkpoint is left as it was saved; .* with --out"):
            export(folder, out, base=base)
    assert export(folder, tmp_path / "out", base=base).difference == 0
    assert checked(folder).step == 4
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged: adapter_config\.json"):
        export(folder, tmp_path / "other", base=base)


def test_a_run_that_was_cut_off_gives_its_last_checkpoint(run, base, capsys):
    (run / "adapter").rename(run / "kept")
    for step in (2, 10, 12):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        complete(trained(base, aside(folder), step=0.01 * step), folder, step=step, num_processes=1)
    (folder / "adapter_config.json").write_text("{}")
    export(run)
    said = capsys.readouterr().out
    assert "checkpoint-12 is damaged: adapter_config.json has 2 bytes instead of" in said
    assert "taking the checkpoint of step 10" in said
    last = load_file(run / "checkpoints" / "checkpoint-10" / "adapter_model.safetensors")
    written = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(written[name], last[name]) for name in last)


def test_files_that_read_back_as_another_policy_are_no_export(run, monkeypatch):
    save = adapters.save_adapter

    def spoilt(module, folder, **beside):
        with torch.no_grad():
            next(iter(adapters.adapted_layers(module).values())).lora_B["default"].weight.mul_(2)
        return save(module, folder, **beside)

    monkeypatch.setattr(adapters, "save_adapter", spoilt)
    with pytest.raises(RunError, match="what was read back differs from the policy by"):
        export(run)


def test_what_cannot_be_exported_is_refused(run, base, tmp_path):
    trained(base, tmp_path / "still", step=0.0)
    with pytest.raises(RunError, match="the adapter changes nothing"):
        export(tmp_path / "still", base=base)
    other = tiny_folder(tmp_path / "other", seed=9)
    with pytest.raises(CheckpointError, match="trained on another base"):
        export(run, base=other)
    with pytest.raises(InputError, match="no such folder"):
        export(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither adapter/ nor a whole checkpoint"):
        export(tmp_path / "empty")


@pytest.mark.parametrize("routing", ["split", "routed"])
def test_an_adapter_that_is_routed_by_task_becomes_a_plain_one_for_each(run, base, capsys, routing):
    for file in (run / "adapter").iterdir():
        file.unlink()
    trained(base, run / "adapter", routing=routing)
    done = export(run)
    assert done.folder == run / "tasks" and done.difference < 1e-5 < done.change
    tasks = {"plan", "draft", "critique", "refinement"} | ({"answer"} if routing == "routed" else set())
    assert {path.name for path in done.folder.iterdir()} == tasks
    assert ("answer       left out" in capsys.readouterr().out) is (routing == "split")
    card = (done.folder / "draft" / "README.md").read_text()
    assert "adapter for drafts" in card and "The run's adapter is routed by task" in card
    assert 'PeftModel.from_pretrained(base, "draft")' in card
    config = json.loads((done.folder / "draft" / "adapter_config.json").read_text())
    assert config["r"] == (12 if routing == "routed" else 2)
    with pytest.raises(InputError, match="something else to the weights for each task"):
        export(run, merge=True)
    trained(base, run / "adapter", routing=routing, step=0.0)
    with pytest.raises(RunError, match="changes nothing"):
        export(run)
