"""Parameters and optimizer states that devices share: the same steps as without, in a part of the memory."""

import chex
import jax
import numpy as np
import pytest

from helpers.dispatches import dispatch
from vqjax.errors import UserError
from vqjax.training.loop import train

BATCH, SIDE, STEPS = 16, 16, 4


def vqvae(config):
    config.model = {"name": "sonnet", "width": 32, "latent_dim": 8, "num_residual_blocks": 1}
    return config


def averaged_in_parts(config):
    config.gradient_accumulation, config.task.ema_decay = 2, 0.9
    return vqvae(config)


def with_divided_codes(config):
    config.quantizer.codebook_shards = 2
    return vqvae(config)


def with_learned_codes(config):
    config.quantizer.num_codes, config.quantizer.codebook = 256, {"name": "gradient"}
    return vqvae(config)


def adversarial(config):
    config.model = {"name": "vqgan", "channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "resolution": SIDE}
    config.task = {"name": "vqgan", "discriminator": {"name": "patchgan", "channels": 16, "num_layers": 2}}
    return config


def steps(config, shards):
    """Parameters after some steps on eight devices, the losses, and the bytes of large arrays that a device holds."""
    config.batch_size = BATCH
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    program, _, arguments = dispatch(config, images, STEPS, shards)
    state, losses = program(*arguments)
    trained = (state.params, state.opt_state, state.ema_params)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(trained) if x.size >= 1024)
    return jax.device_get((state.params, state.ema_params)), np.asarray(losses), held


FULL = [
    pytest.param(change, marks=pytest.mark.full)
    for change in (averaged_in_parts, with_divided_codes, with_learned_codes, adversarial)
]


@pytest.mark.full
@pytest.mark.parametrize("change", [vqvae, *FULL])
def test_devices_that_share_parameters_take_the_same_steps_in_less_memory(config, change):
    config, shards = change(config), 4 if change is with_divided_codes else 8
    config.data.flip, config.data.crop_padding = False, None
    # Adam alone divides gradients by their size, however small, and with them their rounding.
    config.optimizer.eps = 1e-2
    whole, losses, bytes_whole = steps(config, 1)
    shared, losses_shared, bytes_shared = steps(config, shards)
    np.testing.assert_allclose(losses_shared, losses, rtol=1e-5)
    chex.assert_trees_all_close(shared, whole, rtol=1e-3, atol=1e-4)
    assert bytes_shared == bytes_whole / shards


@pytest.mark.full
def test_a_run_goes_on_with_another_division_of_its_parameters(config, tmp_path):
    """And evaluates alike at the end."""
    config = vqvae(config)
    whole = train(config, tmp_path / "whole")
    for num_steps, shards in ((5, 8), (10, 2)):
        config.num_steps, config.parameter_shards = num_steps, shards
        train(config, tmp_path / "run")
    config.num_steps, config.parameter_shards = 12, 1
    result = train(config, tmp_path / "run", devices=jax.devices()[:1])
    np.testing.assert_allclose(result.metrics["mse_01"], whole.metrics["mse_01"], rtol=1e-4)


def test_parameters_are_not_divided_over_devices_that_do_not_share_equally(config, tmp_path):
    config.parameter_shards = 3
    with pytest.raises(UserError, match=r"^config.parameter_shards must be a divisor of 8, the .* devices, got 3"):
        train(config, tmp_path)
    config.parameter_shards, config.quantizer.codebook_shards = 4, 4
    both = r"^config.quantizer.codebook_shards times config.parameter_shards must be a divisor of 8, .*, got 16"
    with pytest.raises(UserError, match=both):
        train(config, tmp_path)
