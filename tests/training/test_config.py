"""Config files say what runs, every argument of that is a flag, and what cannot run is refused by its path."""

import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from helpers.configs import load
from vqjax import quantizers
from vqjax.data.arrays import ArrayDataset
from vqjax.data.photos import photo_splits
from vqjax.data.sources import SOURCES
from vqjax.errors import UserError
from vqjax.models.registry import build_model
from vqjax.quantizers.recipes import RECIPES
from vqjax.runtime.signature import Call, within
from vqjax.training.build import build_task, check_fits, example_batch
from vqjax.training.config import (
    GROUPS,
    Run,
    base_config,
    complete,
    load_config,
    override,
    override_all,
    validate,
)


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        "cifar10",
        "cifar10:",
        "cifar10:sonnet",
        "cifar10:sonnet,estimator=rotation",
        "cifar10:preset=xlarge,beta=2,epochs=3",
        "cifar10:codes=333",
        "classify_cifar10",
        "classify_imagenet",
        "classify_imagenette",
        *(f"quickstart:quantizer={name}" for name in RECIPES),
    ],
)
def test_every_config_file_is_valid(name):
    config = load(name)
    assert validate(config) == config
    build_model(config.model, config.quantizer)


@pytest.mark.parametrize(("preset", "codes"), [("small", 256), ("medium", 512), ("large", 1024), ("xlarge", 2048)])
def test_presets_change_the_number_of_codes_as_in_the_code_of_the_study(preset, codes):
    config = load(f"cifar10:preset={preset}")
    assert config.quantizer.num_codes == codes
    assert config.model.width == 256
    assert config.num_steps == 50 * 390


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cods=3", "config argument cods is unknown; did you mean 'codes'?"),
        ("codes=3x", "config argument codes must be an integer or None, got '3x'."),
        ("beta=", "config argument beta must be a finite number, got ''."),
        ("sonnet=maybe", "config argument sonnet must be True or False, got 'maybe'."),
        ("preset=smal", "config argument preset='smal' is unknown; did you mean 'small'?"),
        (
            "sonnet,preset=small",
            "preset must be left out with sonnet, which has 512 codes; pass codes=N for another number.",
        ),
    ],
)
def test_arguments_of_a_config_file_are_checked(argument, message):
    with pytest.raises(UserError, match=rf"configs/cifar10\.py.*: {re.escape(message)}$"):
        load(f"cifar10:{argument}")


def test_configs_of_the_package_go_by_name(tmp_path, monkeypatch):
    of_file = load("cifar10:sonnet,codes=64")
    monkeypatch.chdir(tmp_path)
    assert load_config("cifar10:sonnet,codes=64") == of_file
    with pytest.raises(UserError, match=r"one of the package, .*, got 'cifar01:sonnet'; did you mean 'cifar10'\?"):
        load_config("cifar01:sonnet")


def test_a_config_function_of_one_text_gets_what_follows_the_colon(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from vqjax.training.config import base_config\n"
        "def get_config(text='nothing'):\n"
        "    config = base_config()\n"
        "    config.data = dict(source='arrays', name=text)\n"
        "    return config\n"
    )
    assert load_config(f"{file}:a=1,b").data.name == "a=1,b"
    assert load_config(str(file)).data.name == "nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config():\n    return 1 / 0\n", "line 2 cannot be used: ZeroDivisionError: division by zero"),
        ("import nowhere\n", "line 1 cannot be used: ModuleNotFoundError: No module named 'nowhere'"),
        ("config = 3\n", "cannot be used: KeyError: 'get_config'"),
        ("def get_config() return\n", "cannot be used: SyntaxError"),
        ("def get_config():\n    return 3\n", "the config must be a ConfigDict, got 3"),
        (
            "from vqjax import quantizers\ndef get_config():\n    return quantizers.defaults('fsq', levls=(8,))\n",
            "line 3: levls is unknown; did you mean 'levels'?",
        ),
    ],
)
def test_what_fails_in_a_config_file_is_reported_with_its_place(tmp_path, content, message):
    file = tmp_path / "broken.py"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(str(file))


def valid_config():
    config = base_config()
    config.num_steps = 10
    return config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "config.batch_size must be at least 1, got 0."),
        ("num_steps", None, "config.num_steps is missing; it must be an integer."),
        ("seed", -1, "config.seed must be at least 0, got -1."),
        (
            "gradient_accumulation",
            5,
            "config.gradient_accumulation must be a divisor of batch_size=128 or None, got 5.",
        ),
        ("data.source", "foto", "config.data.source='foto' is unknown; did you mean 'photos'?"),
        ("data.image_size", 5000, "config.data.image_size must be from 1 to 4096, got 5000."),
        ("data.crop_padding", 32, "config.data.crop_padding must be less than image_size=32, got 32."),
        ("model.name", "sonet", "config.model.name='sonet' is unknown; did you mean 'sonnet'?"),
        ("model.latent_dim", 0, "config.model.latent_dim must be an integer in [1, 8192], got 0."),
        ("model.latent_dim", 10**9, "config.model.latent_dim must be an integer in [1, 8192], got 1000000000."),
        ("quantizer.name", "fsk", "config.quantizer.name='fsk' is unknown; did you mean 'fsq'?"),
        ("quantizer.num_codes", 0, "config.quantizer.num_codes"),
        ("optimizer.schedule", "cosin", "config.optimizer.schedule='cosin' is unknown; did you mean 'cosine'?"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    config = valid_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        build_parts(validate(config))


def build_parts(config):
    """The checks of a run before it reads images."""
    side = config.data.image_size
    images = ArrayDataset("black", np.zeros((2, side, side, 3), np.uint8), image_size=side)
    check_fits(build_task(config, images), jax.random.key(0), example_batch(images))


@pytest.mark.parametrize(
    ("quantizer", "changes", "message"),
    [
        ("vq", {"data.image_size": 30}, "must fit images of 30 x 30 pixels (config.data.image_size): "),
        ("vq", {"quantizer.num_codes": 2**30, "model.width": 2048}, "must fit into memory, got "),
        ("binary_mapper", {"model.latent_dim": 5}, "must fit images of 32 x 32 pixels"),
        ("multi_scale_vq", {"quantizer.scales": (1, 4)}, "at their own size of 32 x 32 pixels, got 16 x 16"),
        ("residual_vq", {"task.name": "alternating"}, "config.task: The codes of the quantizer must be learned"),
        ("vq", {"task.name": "alternating"}, "config.task: The codes of the quantizer must be learned"),
        (
            "vq",
            {"task.name": "alternating", "quantizer.codebook": {"name": "gradient"}},
            "config.task: The quantizer's codebook.weight must be 0",
        ),
        ("random_projection", {"task.kmeans_init": True}, "config.task.kmeans_init must be False"),
        ("residual_fsq", {"task.kmeans_init": True}, "config.task.kmeans_init must be False"),
        ("vq", {"optimizer.warmup_steps": 99}, "config.optimizer.warmup_steps must be at most config.num_steps=10"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(quantizer, changes, message):
    config = valid_config()
    config.model.width = 8
    config.quantizer = RECIPES[quantizer]
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        build_parts(validate(config))


def test_a_group_may_be_a_plain_dictionary_of_what_differs():
    config = valid_config()
    config.model = {"name": "sonnet", "width": 16}
    assert validate(config).model.latent_dim == 64


@pytest.mark.parametrize("group", ["task", "data", "model", "quantizer", "loss", "optimizer"])
def test_a_missing_group_is_named(group):
    config = valid_config()
    del config[group]
    with pytest.raises(UserError, match=rf"^config\.{group} is missing; it must be a dictionary with (name|source)="):
        validate(config)


def test_a_field_that_the_trainer_never_reads_is_refused():
    config = valid_config()
    config.quantizer.num_code = 3
    with pytest.raises(UserError, match=r"^config\.quantizer\.num_code is unknown; did you mean 'num_codes'\?$"):
        validate(config)


@pytest.mark.parametrize(
    ("quantizer", "argument", "value"),
    [("fsq", "num_codes", 7), ("vq", "bits", 7), ("vq", "levels", (8, 5)), ("lfq", "decay", 0.9)],
)
def test_an_argument_of_another_quantizer_is_refused(quantizer, argument, value):
    config = valid_config()
    config.quantizer = RECIPES[quantizer]
    config.quantizer[argument] = value
    with pytest.raises(UserError, match=rf"^config\.quantizer\.{argument} is unknown"):
        validate(config)


def test_every_argument_of_what_a_config_names_is_a_flag():
    config = load("quickstart:quantizer=residual_vq", "--config.quantizer.quantizer.num_codes=8", "--config.seed=3")
    assert (config.quantizer.quantizer.num_codes, config.seed) == (8, 3)


def test_flags_apply_in_any_order_names_first():
    flags = ["--config.data.name=images.npz", "--config.quantizer.levels=8,5", "--config.quantizer.name=fsq"]
    flags += ["--config.data.source=arrays"]
    for order in (flags, flags[::-1]):
        config = load("quickstart", *order)
        assert (config.data.source, config.data.name, config.data.image_size) == ("arrays", "images.npz", 64)
        assert config.quantizer == ConfigDict(quantizers.defaults("fsq", levels=(8, 5)))


def test_another_optimizer_keeps_the_learning_rate_of_the_config():
    optimizer = load("quickstart", "--config.optimizer.name=adamw").optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == ("adamw", 1e-3, "cosine")
    assert optimizer.weight_decay > 0


def test_none_turns_off_what_can_be_off():
    config = override(base_config(), "optimizer.clip_norm=1")
    assert config.optimizer.clip_norm == 1.0
    assert override(config, "optimizer.clip_norm=None").optimizer.clip_norm is None
    with pytest.raises(UserError, match=r"^config\.batch_size must be an integer, got None\.$"):
        override(config, "batch_size=None")


def optional_fields(call, config, path=""):
    """Dotted names of the fields that can be off, of every choice of every part."""
    for name, field in call.fields.items():
        if field.can_be_off or field.several:
            yield config, f"{path}{name}"
        if field.part is not None and not field.several and path.count(".") < 3:
            for choice in field.part:
                chosen = override(config, f"{path}{name}.{field.part.key}={choice}")
                yield from optional_fields(field.part.call(choice), chosen, f"{path}{name}.")


@pytest.mark.full
def test_every_field_that_can_be_off_is_turned_off_by_none():
    count = 0
    for config, path in optional_fields(Call(Run, GROUPS), valid_config()):
        value = override(config, f"{path}=None")
        for name in path.split("."):
            value = value[name]
        assert not value, path
        assert value is None or hasattr(value, "items"), path
        count += 1
    assert count > 100


def test_one_of_several_parts_is_turned_off_by_none():
    """Bug: a penalty that a config had turned on could not be turned off again without the others."""
    config = override(base_config(), "quantizer.regularizers.diversity.weight=0.1")
    config = override(config, "quantizer.regularizers.orthogonality.weight=0.2")
    config = override(config, "quantizer.regularizers.diversity=None")
    assert list(config.quantizer.regularizers) == ["orthogonality"]
    with pytest.raises(UserError, match=r"^config\.quantizer\.regularizers\.divrsity=?.* is unknown"):
        override(config, "quantizer.regularizers.divrsity=None")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["keep_every=150"], "config.keep_every must be a multiple of checkpoint_every=1000 or None, got 150."),
        (["keep_best=psnr", "eval_every=300"], "config.eval_every must be a divisor of checkpoint_every=1000"),
        (["keep_best=psnt"], "config.keep_best='psnt' is no metric of an evaluation; did you mean 'psnr'?"),
        (["patience=3"], "config.keep_best must be a metric such as psnr where patience=3, got None"),
        (["keep_best=psnr", "patience=0"], "config.patience must be at least 1, got 0"),
        (["keep_best=psnr", "keep_best_mode=min"], "config.keep_best_mode must be 'max' for psnr, got 'min'."),
        (["optimizer.name=sgd", "optimizer.nesterov"], "config.optimizer.nesterov must be False without momentum"),
        (["keep_best_mode=most"], "config.keep_best_mode='most' is unknown; use one of 'max', 'min'"),
        (["data.image_size=8,8,8"], "config.data.image_size must be one number, or height and width, got (8, 8, 8)."),
        (["data.image_size=8,0"], "config.data.image_size must be at least 1, got (8, 0)"),
        (["data.image_size=8,16", "data.crop_padding=9"], "crop_padding must be less than image_size=(8, 16), got 9."),
        (["data.channels=2"], "config.data.channels must be 1 (gray), 3 (RGB) or 4"),
        (["model.image_channels=0"], "config.model.image_channels must be an integer in [1, 8192]"),
    ],
)
def test_values_that_do_not_go_together_are_refused(flags, message):
    config = valid_config()
    config.model.width = 8
    with pytest.raises(UserError, match=re.escape(message)):
        build_parts(validate(override_all(config, [f"--config.{flag}" for flag in flags])))


def test_a_source_added_at_run_time_is_a_choice_of_configs():
    """Bug: the group `data` had a copy of the registry of sources."""
    SOURCES["added"] = photo_splits
    try:
        assert override(base_config(), "data.source=added").data.source == "added"
    finally:
        del SOURCES["added"]


def test_a_boolean_alone_is_turned_on():
    assert override(base_config(), "wandb").wandb
    assert not override(base_config(), "tensorboard=false").tensorboard


def test_each_network_may_have_an_optimizer_of_its_own():
    config = valid_config()
    config.optimizer = {"generator": {"name": "adam", "b1": 0.5}, "discriminator": {"name": "sgd"}}
    config = validate(config)
    assert (config.optimizer.generator.b2, config.optimizer.discriminator.momentum) == (0.999, None)
    changed = override(config, "optimizer.generator.learning_rate=1e-5")
    assert (changed.optimizer.generator.learning_rate, changed.optimizer.discriminator.name) == (1e-5, "sgd")
    for assignment, message in [
        ("optimizer.generator.b3=1", r"^config\.optimizer\.generator\.b3 is unknown; use one of 'b1'"),
        ("optimizer.generatr.b1=1", r"^config\.optimizer\.generatr is unknown; did you mean 'generator'\?$"),
        ("optimizer.generator=sgd", r"^config\.optimizer\.generator is a group"),
        ("optimizer.learning_rate=1", r"^config\.optimizer\.learning_rate is unknown; use one of"),
    ]:
        with pytest.raises(UserError, match=message):
            override(config, assignment)


def test_the_config_of_a_checkpoint_is_complete():
    config = valid_config()
    config.model = {"name": "residual"}
    assert complete(complete(config)) == validate(config)
    with within("config"):
        assert validate(ConfigDict(validate(config).to_dict())) == validate(config)
