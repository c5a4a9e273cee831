"""A config that cannot run is refused by the name of its field."""

import importlib.util
from pathlib import Path

import pytest

from vqjax.errors import UserError
from vqjax.models.registry import build_model
from vqjax.quantizers.registry import FAMILIES
from vqjax.training.config import default_config, parse_variant
from vqjax.training.quantizer_presets import PRESETS, use_preset
from vqjax.training.validation import validate

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("quickstart", None),
        ("cifar10", ""),
        ("cifar10", "sonnet"),
        ("cifar10", "sonnet,estimator=rotation"),
        ("cifar10", "preset=xlarge,beta=2,epochs=3"),
        ("cifar10", "codes=333"),
        *(("quickstart", f"quantizer={name}") for name in FAMILIES),
    ],
)
def test_every_config_file_is_valid(name, argument):
    config = load(name)() if argument is None else load(name)(argument)
    validate(config)
    build_model(config.model, config.quantizer)


@pytest.mark.parametrize(("preset", "codes"), [("small", 256), ("medium", 512), ("large", 1024), ("xlarge", 2048)])
def test_presets_change_the_number_of_codes_as_in_the_code_of_the_study(preset, codes):
    config = load("cifar10")(f"preset={preset}")
    assert config.quantizer.num_codes == codes
    assert config.model.width == 256
    assert config.num_steps == 50 * 390


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cods=3", "config argument 'cods' is unknown: did you mean 'codes'?"),
        ("codes=3x", "config argument codes='3x' is not allowed: use a value of type int."),
        ("beta=", "config argument beta='' is not allowed: use a value of type float."),
        ("sonnet=maybe", "config argument sonnet='maybe' is not allowed: use sonnet=true or sonnet=false."),
    ],
)
def test_arguments_of_a_config_file_are_checked(argument, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parse_variant(argument, codes=1, beta=0.5, sonnet=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, r"config\.batch_size=0 is not allowed: use a whole number of at least 1\."),
        ("num_steps", None, r"config\.num_steps=None is not allowed"),
        ("seed", -1, r"config\.seed=-1 is not allowed"),
        ("data.source", "foto", r"config\.data\.source='foto' is not allowed: did you mean 'photos'\?"),
        ("data.image_size", 30, r"config\.data\.image_size=30 is not allowed.*multiple of 4"),
        ("data.eval_fraction", 1.0, r"config\.data\.eval_fraction=1\.0 is not allowed"),
        ("data.crop_padding", 32, r"config\.data\.crop_padding=32 is not allowed"),
        ("model.name", "sonet", r"config\.model\.name='sonet' is not allowed: did you mean 'sonnet'\?"),
        ("model.code_dim", 0, r"config\.model\.code_dim=0 is not allowed: use a whole number in \[1, 8192\]"),
        ("model.code_dim", 10**9, r"config\.model\.code_dim=1000000000 is not allowed"),
        ("quantizer.name", "vec", r"config\.quantizer\.name='vec' is not allowed"),
        ("quantizer.num_codes", 1, r"config\.quantizer\.num_codes=1 is not allowed: use a whole number in \[2, "),
        ("quantizer.num_codes", 2**30, r"config\.quantizer\.num_codes=1073741824 is not allowed"),
        ("optimizer.learning_rate", 0.0, r"config\.optimizer\.learning_rate=0\.0 is not allowed"),
        ("optimizer.schedule", "linear", r"config\.optimizer\.schedule='linear' is not allowed"),
        ("optimizer.warmup_steps", 99, r"config\.optimizer\.warmup_steps=99 is not allowed"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    config = valid_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        validate(config)


def valid_config():
    config = default_config()
    config.num_steps, config.data.source = 10, "photos"
    return config


def test_every_quantizer_has_a_preset():
    assert PRESETS.keys() == FAMILIES.keys()
    with pytest.raises(UserError, match=r"quantizer='fsk' is unknown: did you mean 'fs[qp]'"):
        use_preset(default_config(), "fsk")


@pytest.mark.parametrize(
    ("quantizer", "changes", "message"),
    [
        ("fsq", {"quantizer.num_codes": 7}, r"num_codes=7 is not allowed: config\.quantizer\.name='fsq' does not read"),
        ("vector", {"quantizer.bits": 7}, r"config\.quantizer\.bits=7 is not allowed"),
        ("binary_mapper", {"model.code_dim": 5}, r"config\.model\.code_dim=5 is not allowed: set it to .*bits=8"),
        ("multi_scale_vq", {"quantizer.scales": (1, 4)}, r"scales=\(1, 4\) is not allowed: the last one has to be 8"),
        ("residual_vq", {"alternating.num_steps": 2}, r"alternating\.num_steps=2 is not allowed: only the quantizers"),
        ("lfq", {"quantizer.entropy_weight": -1.0}, r"config\.quantizer\.entropy_weight=-1\.0 is not allowed"),
    ],
)
def test_what_a_quantizer_cannot_use_is_refused(quantizer, changes, message):
    config = valid_config()
    use_preset(config, quantizer)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_a_field_that_the_trainer_never_reads_is_refused():
    config = default_config()
    config.quantizer.num_code = 3
    with pytest.raises(UserError, match=r"num_code is unknown: did you mean 'quantizer\.num_codes'\?"):
        validate(config)
