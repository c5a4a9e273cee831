"""VQGANs of taming-transformers, latent diffusion, LlamaGen and diffusers as models and variables."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.arrays import gaussian
from helpers.goldens import assert_equal, channels_last, golden, kernel, weights
from helpers.tokenizers import CONFIG, state_dict
from vqjax import EMACodebook, GradientCodebook, UserError, VectorQuantizer
from vqjax.importing import diffusers, llamagen, taming, to_diffusers
from vqjax.models.registry import vqgan
from vqjax.quantizers import LinearTransform


@pytest.mark.full
@pytest.mark.parametrize("name", ["taming_vqmodel", "ldm_vqmodel"])
def test_the_model_is_the_recorded_one(name):
    arrays, config = golden(name)
    model, variables = taming(weights(arrays), config)
    images = channels_last(arrays["x"])

    def loss(params, images):
        output, _ = model.apply(variables | {"params": params}, images, train=True, mutable=["codebook"])
        return jnp.mean(jnp.abs(output.reconstruction - images)) + output.quantizer.loss, output

    with_gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, output), (gradient, of_images) = with_gradient(variables["params"], images)
    assert_equal(output.reconstruction, channels_last(arrays["reconstruction"]))
    np.testing.assert_array_equal(output.quantizer.indices, arrays["indices"])
    assert_equal(total, arrays["l1"] + arrays["codebook_loss_legacy"])
    assert_equal(gradient["encoder"]["conv_in"]["kernel"], kernel(arrays["grad_first_layer"]))
    assert_equal(gradient["decoder"]["conv_out"]["kernel"], kernel(arrays["grad_last_layer"]))
    assert_equal(gradient["quantizer"]["codes"], arrays["grad_codes"])
    assert_equal(of_images, channels_last(arrays["grad_x"]))


@pytest.mark.full
def test_the_tokenizer_of_llamagen_is_the_recorded_one():
    arrays, facts = golden("llamagen_tokenizer")
    config = facts["config"] | {"codebook_size": facts["codes"], "codebook_embed_dim": facts["code_dim"]}
    model, variables = llamagen(weights(arrays), config | {"encoder_ch_mult": facts["config"]["ch_mult"]})
    output = jax.jit(lambda x: model.apply(variables, x, train=False))(channels_last(arrays["x"]))
    assert_equal(output.reconstruction, channels_last(arrays["reconstruction"]))
    np.testing.assert_array_equal(output.quantizer.indices.ravel(), arrays["indices"].ravel())


@pytest.mark.full
def test_export_and_import_are_inverse(tmp_path):
    model, variables = taming(state_dict(), CONFIG)
    arrays, config = to_diffusers(model, variables)
    # Names and shapes of diffusers, counted from coarse to fine in the decoder, with linear layers in attention.
    assert arrays["decoder.up_blocks.0.upsamplers.0.conv.weight"].shape == (64, 64, 3, 3)
    assert arrays["encoder.mid_block.attentions.0.to_out.0.weight"].shape == (64, 64)
    assert config["down_block_types"] == ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
    assert config["up_block_types"] == ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]
    save_file(arrays, tmp_path / "model.safetensors")
    again, same = diffusers(tmp_path / "model.safetensors", config)
    chex.assert_trees_all_equal(same["params"], variables["params"])
    images = gaussian(2, 8, 8, 3)
    first, second = (m.apply(v, images, method="reconstruct") for m, v in ((model, variables), (again, same)))
    np.testing.assert_array_equal(first, second)


@pytest.mark.full
@pytest.mark.parametrize("codebook", [EMACodebook(), GradientCodebook(transform=LinearTransform())])
def test_codes_are_exported_as_they_are_used(codebook):
    """Bug: those of moving averages were left out, and a transform was written in the place of its codes."""
    size = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "latent_dim": 4, "code_dim": 4}
    model = vqgan(VectorQuantizer(16, codebook=codebook), **size, attention_resolutions=())
    images = gaussian(2, 8, 8, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    again, same = diffusers(*to_diffusers(model, variables))
    first, second = (m.apply(v, images, method="reconstruct") for m, v in ((model, variables), (again, same)))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    for option in ({"codebook_dim": 2}, {"latent_norm": "rms"}):
        with pytest.raises(UserError, match="without codebook_dim and latent_norm"):
            to_diffusers(vqgan(VectorQuantizer(16, **option), **size), variables)
    for option in ({"num_res_blocks": 2}, {"middle_attention": False}, {"attention_resolutions": (256,)}):
        with pytest.raises(UserError, match="must be a VQGANDecoder with the sizes and latent_dim of the encoder"):
            to_diffusers(model.clone(decoder=model.decoder.clone(**option)), variables)


@pytest.mark.parametrize(("option", "value"), [("norm_num_groups", 16), ("act_fn", "gelu"), ("norm_type", "spatial")])
def test_models_of_diffusers_with_other_layers_are_refused(option, value):
    """Bug: they were imported as if they had the layers of all others."""
    arrays, config = to_diffusers(*taming(state_dict(), CONFIG))
    with pytest.raises(UserError, match=rf"{option} must be .*, got '?{value}"):
        diffusers(arrays, config | {option: value})


@pytest.mark.full
def test_names_of_old_diffusers_files():
    model, variables = taming(state_dict(), CONFIG)
    arrays, config = to_diffusers(model, variables)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        arrays = {key.replace(f".{new}.", f".{name}."): value for key, value in arrays.items()}
    chex.assert_trees_all_equal(diffusers(arrays, config)[1]["params"], variables["params"])


@pytest.mark.full
def test_a_checkpoint_of_a_whole_training():
    arrays = state_dict()
    averages = {f"model_ema.{key.replace('.', '')}": value for key, value in state_dict(seed=1).items()}
    others = {"loss.discriminator.main.0.weight": np.ones(3), "model_ema.decay": np.array(0.999)}
    others["model_ema.num_updates"] = np.array(7)
    _, variables = taming(arrays | averages | others, CONFIG)
    chex.assert_trees_all_equal(variables, taming(state_dict(seed=1), CONFIG)[1])
    prefixed = {f"first_stage_model.{key}": value for key, value in arrays.items()} | {"model.other": np.ones(2)}
    chex.assert_trees_all_equal(taming(prefixed, CONFIG)[1], taming(arrays, CONFIG)[1])


def with_option(name):
    return CONFIG | {"ddconfig": CONFIG["ddconfig"] | {name: True}}


def without(key):
    return {name: value for name, value in state_dict().items() if name != key}


def test_no_attention_is_none_at_any_level():
    """Bug: ``attn_type: none`` left the attention of the levels, which latent diffusion takes away as well."""
    arrays = {key: value for key, value in state_dict().items() if ".attn" not in key}
    assert CONFIG["ddconfig"]["attn_resolutions"]
    model, _ = taming(arrays, CONFIG | {"ddconfig": CONFIG["ddconfig"] | {"attn_type": "none"}})
    assert not any(model.encoder.has_attention(level) for level in range(len(model.encoder.multipliers)))


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        (without("quant_conv.bias"), CONFIG, r"missing \['quant_conv.bias'\] and surplus \[\]"),
        (state_dict() | {"colorize": np.ones(3)}, CONFIG, "got a VQGAN of segmentation maps"),
        (state_dict() | {"quantize.proj.weight": np.ones(3)}, CONFIG, "got a VQGAN with a Gumbel-softmax quantizer"),
        (state_dict() | {"quantize.used": np.ones(3)}, CONFIG, "whose indices are remapped"),
        (state_dict(), CONFIG | {"n_embed": 8}, r"quantize.embedding.weight must have shape \[8, 4\], got \[16, 4\]"),
        (state_dict() | {"quant_conv.bias": np.full(4, np.nan)}, CONFIG, r"undefined numbers in \['quant_conv.bias'\]"),
        (state_dict(), with_option("double_z"), "double_z must be False"),
        (state_dict(), with_option("tanh_out"), "tanh_out must be False"),
        (state_dict(), {"model": {"params": with_option("tanh_out")}}, "tanh_out must be False"),
        (state_dict(), with_option("give_pre_end"), "give_pre_end must be False"),
        (state_dict(), CONFIG | {"l2_normalize": True}, "l2_normalize must be False"),
        (state_dict() | {0: np.ones(2)}, CONFIG, "arrays must have names for keys, got 0"),
    ],
)
def test_what_is_another_model_is_rejected(arrays, config, message):
    with pytest.raises(UserError, match=message):
        taming(arrays, config)
