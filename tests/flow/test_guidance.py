from __future__ import annotations

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.flow import Guidance, combine

DRAWINGS = {
    "03_generate_t2i.npz": {
        "nocfg": Guidance(),
        "global_": Guidance(text=4.0),
        "channel": Guidance(text=4.0, renorm="channel"),
        "textch": Guidance(text=4.0, renorm="text_channel"),
        "rmin": Guidance(text=4.0, renorm_min=0.8),
        "global_img15": Guidance(text=4.0, image=1.5),
    },
    "04_generate_edit.npz": {
        "global_": Guidance(text=4.0, image=1.5),
        "textch": Guidance(text=4.0, image=1.5, renorm="text_channel"),
        "channel": Guidance(text=4.0, image=1.5, renorm="channel"),
        "imgonly": Guidance(text=1.0, image=1.5),
    },
}
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def velocities():
    """Full, text-dropped and image-dropped velocities: [4, 6, 3] each."""
    return torch.randn(3, 4, 6, 3, generator=torch.Generator().manual_seed(5)).unbind()


@pytest.mark.parametrize("file", DRAWINGS)
def test_recorded_raw_velocities_combine_to_the_recorded_ones(golden, file):
    arrays = golden(file)
    cases = [name for name in DRAWINGS[file] if f"{name}_raw_active" in arrays]
    if not cases:
        pytest.skip(f"{file} holds no raw velocities")
    for name in cases:
        guidance, active = DRAWINGS[file][name], arrays[f"{name}_cfg_active"]
        raw, times = arrays[f"{name}_raw_active"], arrays[f"{name}_t"].float()
        assert torch.equal(guidance.active(times), active)
        found = combine(guidance, times[active], *raw.unbind(1))
        torch.testing.assert_close(found, arrays[f"{name}_v"][active], **TOLERANCE)


@pytest.mark.parametrize("file", DRAWINGS)
def test_all_recorded_settings_agree_on_the_first_step(golden, file):
    # All drawings of a file start from the same noise and contexts, so one record of raw velocities serves them all.
    arrays = golden(file)
    raw = next((value[0] for key, value in arrays.items() if key.endswith("_raw_active")), None)
    if raw is None:
        pytest.skip(f"{file} holds no raw velocities")
    for name, guidance in DRAWINGS[file].items():
        if f"{name}_v" in arrays:
            found = combine(guidance, arrays[f"{name}_t"][0].float(), *raw)
            torch.testing.assert_close(found, arrays[f"{name}_v"][0], **TOLERANCE)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_an_image_is_guided_as_if_it_were_alone(velocities, renorm):
    guidance = Guidance(text=4.0, image=1.5, renorm=renorm)
    times = torch.tensor([1.0, 0.4, 0.41, 0.1])
    batch = combine(guidance, times, *velocities)
    for row in range(4):
        alone = combine(guidance, times[row], *(velocity[row] for velocity in velocities))
        torch.testing.assert_close(batch[row], alone)
    plain = velocities[0]
    assert torch.equal(batch[[1, 3]], plain[[1, 3]])  # the interval is open below
    assert not torch.allclose(batch[[0, 2]], plain[[0, 2]])


def test_global_renormalisation_never_lengthens_an_image(velocities):
    guided = combine(Guidance(text=4.0), torch.ones(4), *velocities)
    length = torch.linalg.vector_norm(velocities[0], dim=(1, 2))
    torch.testing.assert_close(torch.linalg.vector_norm(guided, dim=(1, 2)), length)


def test_image_guidance_alone_changes_nothing(velocities):
    guidance = Guidance(text=1.0, image=3.0)
    assert not guidance.needs_text_drop and not guidance.needs_image_drop and not guidance.active(1.0)
    assert torch.equal(combine(guidance, torch.ones(4), *velocities), velocities[0])


def test_without_renormalisation_guidance_is_linear(velocities):
    full, text_dropped, image_dropped = velocities
    guided = combine(Guidance(text=2.0, image=1.5, renorm_min=1.0), torch.ones(4), *velocities)
    by_text = text_dropped + 2.0 * (full - text_dropped)
    torch.testing.assert_close(guided, image_dropped + 1.5 * (by_text - image_dropped))


def test_gradient_reaches_every_branch_that_counts(velocities):
    branches = [velocity.clone().requires_grad_(True) for velocity in velocities]
    combine(Guidance(text=4.0, image=1.5), torch.ones(4), *branches).square().sum().backward()
    assert all(branch.grad is not None and bool(branch.grad.abs().sum() > 0) for branch in branches)


def test_dropped_velocities_may_be_left_out_only_where_nothing_is_guided(velocities):
    full, text_dropped, _ = velocities
    guidance = Guidance(text=4.0, image=1.5)
    assert torch.equal(combine(guidance, torch.full((4,), 0.4), full), full)
    for given in ((), (text_dropped,)):
        with pytest.raises(InputError, match="dropped velocity is missing"):
            combine(guidance, torch.tensor([0.1, 0.1, 0.1, 0.5]), full, *given)


@pytest.mark.parametrize("wrong", [{"renorm": "image"}, {"renorm_min": 2.0}, {"interval": (1.0, 0.4)}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(InputError):
        Guidance(**wrong)
