"""The format of a state dict, and what is said about one that has none."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tokenizers import CONFIG, magvit_entries, state_dict
from vqjax import UserError
from vqjax.importing import diffusers, ibq, llamagen, taming, to_diffusers
from vqjax.importing.formats import recognize
from vqjax.importing.state_dict import original_config


def keys(*names):
    return dict.fromkeys(names, np.ones(1))


def first_stage(arrays):
    return {f"first_stage_model.{key}": value for key, value in arrays.items()}


@pytest.mark.parametrize(
    ("arrays", "name"),
    [
        (state_dict(), "taming"),
        (first_stage(state_dict()), "taming"),
        (keys("encoder.down_blocks.0.resnets.0.norm1.weight", "quantize.embedding.weight"), "diffusers"),
        (keys("encoder.conv_blocks.0.res.0.norm1.weight"), "llamagen"),
        (keys("encoder.to_patch_embedding.0.weight"), "enhancing_transformers"),
        (magvit_entries(variant="open_magvit2"), "open_magvit2"),
        (
            first_stage(magvit_entries(variant="open_magvit2")) | keys("transformer.layers.0.attention.wo"),
            "open_magvit2",
        ),
        (magvit_entries(variant="maskgit"), "maskgit"),
        (keys("module.vq._codebook.embed", "module.encoder.conv_in.weight"), "rotation_trick"),
    ],
)
def test_a_format_is_recognized(arrays, name):
    assert recognize(arrays) == name


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (keys("encoder.down.0.block.0.norm1.weight", "quant_conv.weight"), "a variational autoencoder .* lacks codes"),
        (keys("layers.0._codebook.embed"), "a quantizer of vector-quantize-pytorch, which lacks an encoder"),
        (keys("loss.discriminator.main.0.weight"), "a discriminator, which lacks an autoencoder"),
        (keys("transformer.h.0.attn.c_attn.weight"), "a transformer, which lacks"),
        (keys("fc.weight", "fc.bias"), r"none of these, with the entries \['fc.bias', 'fc.weight'\]"),
        (keys("encoder.down_blocks.0.resnets.0.norm1.weight", "quant_conv.weight"), "autoencoder .* lacks codes"),
        (keys("encoder.down_blocks.0.resnets.0.norm1.weight"), "an autoencoder of diffusers that lacks codes"),
        (state_dict() | keys("encoder.down.0.block.3.norm1.weight"), "--format must be taming or ibq"),
        (first_stage(state_dict() | keys("encoder.down.0.block.3.norm1.weight")), "--format must be taming or ibq"),
    ],
)
def test_a_file_of_something_else_is_refused(arrays, message):
    with pytest.raises(UserError, match=message) as error:
        recognize(arrays)
    assert "\n" not in str(error.value)


def test_where_the_parameters_are():
    inner = {"n_embed": 16, "ddconfig": {}}
    for config in (
        inner,
        {"model": {"target": "taming.models.vqgan.VQModel", "params": inner}},
        {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": inner}},
        {"model": {"params": {"unet_config": {}, "first_stage_config": {"params": inner}}}},
    ):
        assert original_config(config) == inner


@pytest.mark.parametrize("importer", [llamagen, diffusers])
def test_arrays_of_another_format_are_refused(importer):
    with pytest.raises(UserError, match="use the importer of their format"):
        importer(state_dict())


@pytest.mark.full
def test_sizes_are_read_from_the_shapes():
    model, _ = taming(state_dict(), CONFIG)
    without, _ = taming(state_dict())
    # What is written differently there is the same here.
    levels = {"attention_resolutions": (4,), "resolution": 8}
    same = without.clone(encoder=without.encoder.clone(**levels), decoder=without.decoder.clone(**levels))
    assert same == model
    assert taming(state_dict(), {"ddconfig": {"dropout": 0.1}})[0].encoder.dropout == 0.1
    arrays, config = to_diffusers(model, taming(state_dict(), CONFIG)[1])
    assert diffusers(arrays)[0] == diffusers(arrays, config)[0]


@pytest.mark.full
def test_ibq_takes_the_code_of_the_largest_inner_product():
    model, variables = ibq(state_dict())
    codes = state_dict()["quantize.embedding.weight"]
    z = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    indices = model.quantizer.apply({"params": variables["params"]["quantizer"]}, jnp.asarray(z), method="encode")
    np.testing.assert_array_equal(indices, np.argmax(z @ codes.T, axis=1))
