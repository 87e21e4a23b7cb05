"""Adapters: where they sit, that they switch off and merge exactly, and that their files fit only their own base."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from r3_rl.errors import CheckpointError, InputError
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.policy import adapter_files, adapters
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.backbone import branch_of
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.base import Drawing, Example, Sampling
from tests.policy.tiny_bagel import tiny_bagel, tiny_policy

BRANCHES = BAGEL.spec.branches
SETTINGS = AdapterSettings(rank=2, rank_generation=3, alpha=4.0)
IMAGE = torch.linspace(0, 1, 3 * 16 * 16).view(3, 16, 16)


def shake(module, seed=5):
    """Gives B values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.adapted_layers(module).values():
            weight = layer.lora_B["default"].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return module


def adapted(settings=SETTINGS, seed=1, dtype=torch.float32):
    return shake(adapters.attach(tiny_bagel(dtype=dtype), settings, BRANCHES, seed=seed))


def segments(policy):
    """A plan, a draft, a critique and a refinement: every way a policy reads and answers."""
    ask, check = TextPiece(text="draw a red circle"), TextPiece(text="check a red circle")
    look, edit = ImagePiece(image=IMAGE), ImagePiece(image=IMAGE, use="edit")
    texts = policy.write([(ask,), (look, check)], Sampling(max_new_tokens=5), [1, 2])
    drawing = Drawing(num_steps=3, sde_steps=(0, 1), size=(16, 16))
    return [*texts, *policy.draw([(ask,), (edit, check)], [drawing] * 2, [3, 4])]


def outputs(module):
    """What a fixed batch of both branches gives: logits' cross entropy and squared velocity error, with gradient."""
    policy = tiny_policy(module)
    example = Example(context=(ImagePiece(image=IMAGE), TextPiece(text="draw")), answer="a red circle", image=IMAGE)
    noise = torch.randn(1, 1, 4, 192, generator=torch.Generator().manual_seed(0))
    loss = policy.supervised_at([example], torch.tensor([[0.4]]), noise)
    return torch.stack([loss.text / loss.num_text, loss.flow / loss.num_flow])


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "branches, counts",
    [("both", {"understanding": 28, "generation": 28}), ("understanding", {"understanding": 28, "generation": 0}),
     ("generation", {"understanding": 0, "generation": 28})],
)  # fmt: skip
def test_only_the_chosen_experts_of_the_decoder_train(branches, counts):
    model = adapters.attach(tiny_bagel(), AdapterSettings(rank=2, branches=branches), BRANCHES, seed=0)
    found = adapters.trainable_parameters(model, BRANCHES)
    assert {branch: len(parameters) for branch, parameters in found.items()} == counts
    names = [name for parameters in found.values() for name in parameters]
    assert all(name.startswith("language_model.model.layers.") and ".lora_" in name for name in names)
    outputs(model).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == set(names)
    moved = {b: any(p.grad.abs().sum() > 0 for p in found[b].values()) for b in found}
    assert moved == {branch: count > 0 for branch, count in counts.items()}


def test_ranks_differ_by_branch_and_the_scale_does_not():
    layers = adapters.adapted_layers(adapted())
    ranks = {branch_of(name, BRANCHES): layer.r["default"] for name, layer in layers.items()}
    assert ranks == {"understanding": 2, "generation": 3}
    assert {layer.scaling["default"] for layer in layers.values()} == {2.0}


def test_nothing_matched_names_what_is_there():
    with pytest.raises(InputError, match="branch 'understanding'; the model's linear layers are named like fc"):
        adapters.attach(torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2)}), AdapterSettings(), BRANCHES, seed=0)
    with pytest.raises(
        InputError,
        match=r"lora\.branches: 'gen' is not a branch .* choose one of understanding, generation, both",
    ):
        adapters.attach(tiny_bagel(), AdapterSettings(branches="gen"), BRANCHES, seed=0)
    with pytest.raises(InputError, match="has an adapter already"):
        adapters.attach(adapted(), SETTINGS, BRANCHES, seed=0)


def test_a_fresh_adapter_changes_nothing_and_leaves_the_random_stream_alone():
    base = tiny_bagel()
    before = outputs(base)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    adapters.attach(base, SETTINGS, BRANCHES, seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(outputs(base), before)


def test_the_seed_decides_the_adapter():
    first, again, other = (adapters.attach(tiny_bagel(), SETTINGS, BRANCHES, seed=s) for s in (3, 3, 4))
    assert same(state(first), state(again))
    assert not same(state(first), state(other))


def test_master_weights_are_float32_on_a_bfloat16_base():
    model = adapted(dtype=torch.bfloat16)
    trained = [p for part in adapters.trainable_parameters(model, BRANCHES).values() for p in part.values()]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert outputs(model).isfinite().all()


def test_switched_off_the_policy_is_its_base():
    base, model = tiny_bagel(), adapted()
    assert not torch.allclose(outputs(model), outputs(base), atol=1e-3)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for _ in range(2):  # the second time of an adapter that is frozen, as one is that was loaded
        with adapters.adapter_disabled(model):
            assert torch.equal(outputs(model), outputs(base))
            with adapters.adapter_disabled(model):
                pass
            assert torch.equal(outputs(model), outputs(base))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        model.requires_grad_(False)
        flags = dict.fromkeys(flags, False)
    with pytest.raises(InputError, match="no adapter"), adapters.adapter_disabled(base):
        pass


def beside(module):
    """Products of the adapter beside the weights during some passes of the module."""
    calls = []
    for layer in adapters.adapted_layers(module).values():
        layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_adapter_merged_gives_the_same_policy_and_restores_the_very_tensors():
    model = adapted()
    before, tensors, modules = state(model), dict(model.named_parameters()), dict(model.named_modules())
    expected, calls = outputs(model), beside(model)
    for _ in range(3):
        with adapters.adapter_merged(model):
            assert dict(model.named_modules()) == modules, "nothing is swapped behind the caller's back"
            assert same(state(model), before)
            assert (outputs(model) - expected).abs().max() < 1e-5
            rolled = segments(tiny_policy(model))
            assert not calls, "one product a layer"
    assert all(layer.total is None for layer in adapters.adapted_layers(model).values())
    assert same(state(model), before)
    after = dict(model.named_parameters())
    assert after.keys() == tensors.keys() and all(after[name] is tensors[name] for name in after)
    for segment, replayed in zip(rolled, tiny_policy(model).replay(rolled), strict=True):
        assert ((replayed.log_probs - segment.log_probs).exp() - 1).abs().max() < 1e-4


def test_a_merged_adapter_gets_the_gradient_of_one_beside_the_weights():
    model = adapted()
    trained = [p for branch in adapters.trainable_parameters(model, BRANCHES).values() for p in branch.values()]
    whole = [model.vae2llm.weight.requires_grad_(), model.language_model.model.embed_tokens.weight.requires_grad_()]
    found = []
    for merged in (False, True):
        with adapters.adapter_merged(model) if merged else nullcontext():
            outputs(model).square().sum().backward()
        found.append([p.grad.clone() for p in [*trained, *whole]])
        for p in [*trained, *whole]:
            p.grad = None
    assert len(trained) > 10 and all(gradient.abs().max() > 0 for gradient in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5 * float(one.abs().max()), rtol=1e-4)


def test_the_reference_is_the_base_inside_a_merged_rollout_too():
    model, base = adapted(), tiny_bagel()
    with adapters.adapter_merged(model):
        merged = outputs(model)
        with adapters.adapter_disabled(model):
            assert torch.equal(outputs(model), outputs(base))
        assert torch.equal(outputs(model), merged)


def test_an_error_inside_a_merged_rollout_restores_the_adapter():
    model = adapted()
    expected = outputs(model)
    with pytest.raises(KeyboardInterrupt), adapters.adapter_merged(model):
        raise KeyboardInterrupt
    assert torch.equal(outputs(model), expected)


def test_a_layer_that_cannot_merge_stays_as_it_is():
    coarse, dropping = adapted(dtype=torch.bfloat16), adapted(AdapterSettings(rank=2, dropout=0.5))
    with adapters.adapter_merged(coarse):
        assert all(layer.total is None for layer in adapters.adapted_layers(coarse).values())
    with adapters.training_mode(dropping, seed=(0,)), adapters.adapter_merged(dropping):
        assert all(layer.total is None for layer in adapters.adapted_layers(dropping).values())
    with adapters.adapter_merged(dropping):
        assert all(layer.total is not None for layer in adapters.adapted_layers(dropping).values()), (
            "rollouts do not drop"
        )
    with adapters.adapter_merged(base := tiny_bagel()):
        assert outputs(base).isfinite().all()


def test_the_last_rounding_of_a_merge_is_in_float32():
    """W + scale * B A in bfloat16 is the nearest there is."""
    model = adapted(dtype=torch.bfloat16)
    name, layer = next(iter(adapters.adapted_layers(model).items()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = (layer.weight.float() + 2.0 * b @ a).bfloat16().detach()
    assert torch.equal(adapters.merge(model).get_submodule(name).weight, expected)


def test_merge_leaves_a_plain_model():
    model = adapted()
    expected = outputs(model)
    merged = adapters.merge(model)
    assert merged.state_dict().keys() == tiny_bagel().state_dict().keys()
    assert (outputs(merged) - expected).abs().max() < 1e-5
    with pytest.raises(InputError, match="no adapter"):
        adapters.merge(merged)


def test_plain_peft_loads_what_was_saved(tmp_path):
    model = adapted()
    adapters.save_adapter(model, tmp_path / "adapter", fingerprint="abc", recipe_text="version: 1\n")
    names = ["adapter_config.json", "adapter_model.safetensors", "base.json", "recipe.resolved.yaml"]
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == names
    reloaded = PeftModel.from_pretrained(tiny_bagel(), str(tmp_path / "adapter"))
    assert torch.equal(outputs(reloaded.get_base_model()), outputs(model))
    assert not any(p.requires_grad for p in reloaded.parameters())


def test_what_peft_saved_loads_here(tmp_path):
    model = adapted()
    adapters.save_adapter(model, tmp_path / "ours", fingerprint="abc")
    PeftModel.from_pretrained(tiny_bagel(), str(tmp_path / "ours")).save_pretrained(str(tmp_path / "theirs"))
    reloaded = adapters.load_adapter(tiny_bagel(), tmp_path / "theirs")
    assert torch.equal(outputs(reloaded), outputs(model))
    assert adapter_files.base_fingerprint(tmp_path / "theirs") is None
    with pytest.raises(CheckpointError, match=r"base\.json is missing"):
        adapters.load_adapter(tiny_bagel(), tmp_path / "theirs", fingerprint="abc")


def test_loading_gives_frozen_weights_and_keeps_a_prepared_adapter_trainable(tmp_path):
    model = adapted()
    adapters.save_adapter(model, tmp_path, fingerprint="abc")
    frozen = adapters.load_adapter(tiny_bagel(), tmp_path, fingerprint="abc")
    assert same(state(frozen), state(model))
    assert not any(p.requires_grad for p in frozen.parameters())
    resumed = adapters.attach(tiny_bagel(), SETTINGS, BRANCHES, seed=9)
    parameters = [p for part in adapters.trainable_parameters(resumed, BRANCHES).values() for p in part.values()]
    adapters.load_adapter(resumed, tmp_path, fingerprint="abc")
    assert same(state(resumed), state(model))
    again = [p for part in adapters.trainable_parameters(resumed, BRANCHES).values() for p in part.values()]
    assert len(again) == 56 and all(a is b for a, b in zip(again, parameters, strict=True))


def test_saving_again_replaces_the_files_and_leaves_others(tmp_path):
    model = adapted()
    adapters.save_adapter(model, tmp_path, fingerprint="abc")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "left-by-a-crash").write_text("x")
    shake(model, seed=6)
    adapters.save_adapter(model, tmp_path, fingerprint="abc")
    assert same(state(adapters.load_adapter(tiny_bagel(), tmp_path)), state(model))
    assert (tmp_path / "README.md").read_text() == "card"
    assert not (tmp_path / ".partial").exists() and not (tmp_path / "left-by-a-crash").exists()


@pytest.fixture
def folder(tmp_path):
    return adapters.save_adapter(adapted(), tmp_path / "adapter", fingerprint="abcdefabcdefabcdef")


def test_another_base_is_refused(folder):
    base = tiny_bagel()
    with pytest.raises(CheckpointError, match=r"trained on another base \(weights abcdefabcdef, these are 012345"):
        adapters.load_adapter(base, folder, fingerprint="012345")
    assert not adapters.adapted_layers(base)
    with pytest.raises(CheckpointError, match=r"layers that this model does not have.*layers"):
        adapters.load_adapter(torch.nn.Sequential(torch.nn.Linear(2, 2)), folder)


def test_an_adapter_of_other_settings_is_not_resumed(folder):
    with pytest.raises(CheckpointError, match=r"not the adapter that this run trains: r 2 in the file, 5 here"):
        adapters.load_adapter(adapters.attach(tiny_bagel(), AdapterSettings(rank=5), BRANCHES, seed=0), folder)


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(next(iter(t))), "1 tensors do not fit.*\n.*missing base_model.model.language_model"),
        (lambda t: t.update(other=torch.zeros(1)), "1 tensors do not fit.*\n.*surplus other"),
        (lambda t: t.update({next(iter(t)): torch.zeros(7, 7)}), r"shape \[7, 7\] in the file"),
    ],
)
def test_every_tensor_must_fit(folder, change, message):
    edit_tensors(folder, change)
    base = tiny_bagel()
    with pytest.raises(CheckpointError, match=message):
        adapters.load_adapter(base, folder)
    assert same(state(base), state(tiny_bagel()))


def test_an_adapter_of_embeddings_is_refused_and_leaves_nothing_behind(tmp_path):
    """It could be neither switched off nor merged."""
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    get_peft_model(tiny_bagel(), config).save_pretrained(str(tmp_path), save_embedding_layers=False)
    base = tiny_bagel()
    with pytest.raises(CheckpointError, match=r"surplus .*embed_tokens\.lora_embedding_A"):
        adapters.load_adapter(base, tmp_path)
    assert state(base).keys() == state(tiny_bagel()).keys()


def test_broken_files_are_named(folder, tmp_path):
    def fails(message, break_it):
        shutil.copytree(folder, tmp_path / "broken", dirs_exist_ok=True)
        break_it(tmp_path / "broken")
        with pytest.raises(CheckpointError, match=message):
            adapters.load_adapter(tiny_bagel(), tmp_path / "broken", fingerprint="abcdefabcdefabcdef")
        shutil.rmtree(tmp_path / "broken")

    fails("holds no adapter_config.json", lambda f: (f / "adapter_config.json").unlink())
    fails("not an adapter's configuration", lambda f: (f / "adapter_config.json").write_text("{"))
    fails("adapter_model.safetensors is missing", lambda f: (f / "adapter_model.safetensors").unlink())
    fails("not a whole safetensors file", lambda f: (f / "adapter_model.safetensors").write_bytes(b"123456789"))
    fails("base.json: names no base", lambda f: (f / "base.json").write_text("[]"))

    def dora(f):
        config = json.loads((f / "adapter_config.json").read_text())
        (f / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))

    fails("use_dora: not plain LoRA", dora)
    fails("a git-lfs pointer", lambda f: (f / "adapter_model.safetensors").write_text("version https://git-lfs.x/v1"))


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0), ("r", "8"), ("r", None), ("r", 2.0), ("lora_alpha", "16"), ("lora_alpha", float("nan")),
        ("lora_dropout", 2.0), ("target_modules", None), ("target_modules", "*.q_proj"), ("target_modules", 5),
        ("target_modules", [1]), ("target_modules", []), ("rank_pattern", {"q_proj": "8"}), ("rank_pattern", [1]),
        ("rank_pattern", {"(": 3}), ("alpha_pattern", {"(": 3}), ("exclude_modules", "("), ("bias", "foo"),
        ("trainable_token_indices", [1]), ("modules_to_save", ["lm_head"]), ("peft_type", "IA3"), ("peft_type", "NO"),
        ("use_qalora", True), ("layer_replication", [[0, 1]]),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused_by_its_key(folder, key, value):
    edit_config(folder, **{key: value})
    base = tiny_bagel()
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {key}"):
        adapters.load_adapter(base, folder)
    assert not adapters.adapted_layers(base)


def test_layers_that_the_model_does_not_have_are_named(folder):
    edit_config(folder, target_modules=["to_q"])
    with pytest.raises(CheckpointError, match="layers that this model does not have"):
        adapters.load_adapter(tiny_bagel(), folder)


def test_a_rank_stabilised_adapter_is_scaled_as_peft_scales_it(folder):
    edit_config(folder, use_rslora=True)
    ours = adapters.load_adapter(tiny_bagel(), folder)
    theirs = PeftModel.from_pretrained(tiny_bagel(), str(folder)).get_base_model()
    assert torch.equal(outputs(ours), outputs(theirs))
    plain = adapted()
    assert not torch.equal(outputs(ours), outputs(plain))
    with pytest.raises(CheckpointError, match=r"use_rslora True in the file, False here"):
        adapters.load_adapter(plain, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(folder, value):
    def spoil(tensors):
        tensors[min(tensors)][0, 0] = value

    edit_tensors(folder, spoil)
    with pytest.raises(CheckpointError, match="not finite"):
        adapters.load_adapter(tiny_bagel(), folder)


def test_an_adapter_of_integers_is_refused(folder):
    def quantise(tensors):
        tensors.update({name: tensor.to(torch.int8) for name, tensor in tensors.items()})

    edit_tensors(folder, quantise)
    with pytest.raises(CheckpointError, match=r"is of type torch\.int8"):
        adapters.load_adapter(tiny_bagel(), folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_of_an_adapter_takes_one_line(folder, prefix):
    def wrap(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit_tensors(folder, wrap)
    with pytest.raises(CheckpointError, match="all that differs") as raised:
        adapters.load_adapter(tiny_bagel(), folder)
    assert "\n" not in str(raised.value)


def test_dropout_acts_in_training_mode_and_follows_from_the_seed():
    model = adapted(AdapterSettings(rank=2, alpha=4.0, dropout=0.5))
    calm = outputs(model)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    found = []
    for seed in ((0, 3, 0), (0, 3, 0), (0, 4, 0), (0, 3, 1)):
        with adapters.training_mode(model, seed=seed):
            assert model.training
            found.append(outputs(model))
    assert torch.equal(torch.rand(1), expected), "the caller's random stream stays"
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in (calm, *found[2:])), "other steps and ranks drop others"
    assert not model.training and torch.equal(outputs(model), calm)
