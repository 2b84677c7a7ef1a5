"""ImageNet-C: the published definitions and amounts, whoever computes them."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import torch

from multismolvla.corruption import IMAGENET_C_TYPES, imagenet_c
from multismolvla.corruption.names import COMMON_TYPES, SEVERITIES, STATIC_TYPES
from multismolvla.corruption.soft import apply_soft

OWN = ("impulse_noise", "gaussian_blur", "glass_blur", "fog")


def picture(height: int, width: int) -> torch.Tensor:
    """Smooth colours with edges, uint8 (3, H, W)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([0.2 + 0.6 * x, 0.7 - 0.5 * y, 0.5 + 0.3 * torch.sin(12 * x * y)])
    image[:, height // 4 : height // 2, width // 3 : width // 2] = torch.tensor([0.9, 0.1, 0.1])[
        :, None, None
    ]
    return (image * 255).round().to(torch.uint8)


def corrupted(image: torch.Tensor, type_: str, severity: int, seed: int = 3) -> torch.Tensor:
    return apply_soft(image, None, "rgb", type_, severity, torch.Generator().manual_seed(seed))[0]


def test_all_nineteen_are_there_and_only_four_are_ours():
    assert len(COMMON_TYPES) == 15
    assert len(set(IMAGENET_C_TYPES)) == 19
    assert set(imagenet_c.OWN) == set(OWN)


@pytest.fixture
def package(monkeypatch):
    """The package's own code with the two names put back that its dependencies have dropped."""
    from skimage.filters import gaussian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("imagecorruptions.corruptions")
        corrupt = importlib.import_module("imagecorruptions").corrupt
    monkeypatch.setattr(
        module,
        "gaussian",
        lambda x, sigma, multichannel=False: gaussian(
            x, sigma=sigma, channel_axis=-1 if multichannel else None
        ),
    )
    monkeypatch.setattr(np, "float_", np.float64, raising=False)

    def call(image: torch.Tensor, type_: str, severity: int, seed: int) -> torch.Tensor:
        drawn = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed)))
        noise = module.sk.util.random_noise
        with monkeypatch.context() as patch:
            patch.setattr(
                module.sk.util, "random_noise", lambda x, **k: noise(x, rng=np.random.default_rng(drawn), **k)
            )
            state = np.random.get_state()
            np.random.seed(drawn)
            result = corrupt(image.permute(1, 2, 0).numpy(), severity=severity, corruption_name=type_)
            np.random.set_state(state)
        return torch.from_numpy(np.array(result)).permute(2, 0, 1)

    return call


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("type_", OWN)
def test_ours_equal_the_published_code(package, type_, severity):
    image = picture(48, 70)
    expected = package(image, type_, severity, seed=3)
    # A value that lies on a whole number may be cut off to either side of it.
    difference = (corrupted(image, type_, severity).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("type_", ["gaussian_noise", "frost", "jpeg_compression"])
def test_the_package_gets_the_seed_of_the_generator(package, type_):
    image = picture(48, 70)
    assert torch.equal(corrupted(image, type_, 2), package(image, type_, 2, seed=3))


def test_published_amounts():
    """Values that can be computed by hand from the table of severities."""
    grey = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    for severity, amount in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        noisy = corrupted(grey, "impulse_noise", severity)
        assert (noisy != grey).float().mean() == pytest.approx(amount, abs=0.006)
        assert (noisy == 255).sum() / (noisy == 0).sum() == pytest.approx(1, abs=0.15)
    dot = torch.zeros(3, 65, 65, dtype=torch.uint8)
    dot[:, 32, 32] = 255
    for severity, sigma in zip(SEVERITIES[:2], (1, 2), strict=True):
        peak = corrupted(dot, "gaussian_blur", severity)[0, 32, 32]
        assert float(peak) == pytest.approx(255 / (2 * np.pi * sigma**2), abs=1.5)


@pytest.mark.parametrize("shape", [(32, 32), (128, 200), (360, 240)])
@pytest.mark.parametrize("type_", OWN)
def test_ours_work_at_any_size_and_repeat(type_, shape):
    image = picture(*shape)
    result = corrupted(image, type_, 4)
    assert result.shape == image.shape
    assert result.dtype == torch.uint8
    assert torch.equal(result, corrupted(image, type_, 4))
    assert torch.equal(result, corrupted(image, type_, 4, seed=4)) == (type_ == "gaussian_blur")


@pytest.mark.parametrize("shape", [(128, 360), (200, 129)])
@pytest.mark.parametrize("type_", [t for t in IMAGENET_C_TYPES if t not in OWN])
def test_the_packages_types_keep_the_shape_of_pictures_that_are_not_square(type_, shape, capfd):
    image = picture(*shape)
    assert corrupted(image, type_, 3).shape == image.shape
    assert capfd.readouterr().out == "", "the package prints when it has given up on a size"


def test_what_sits_on_the_lens_stays_for_the_episode():
    assert {"fog", "frost", "glass_blur", "spatter", "elastic_transform"} <= STATIC_TYPES
    assert not {"gaussian_noise", "snow", "motion_blur", "impulse_noise"} & STATIC_TYPES


def test_pictures_that_are_too_small_are_named():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        corrupted(picture(31, 64), "fog", 1)
