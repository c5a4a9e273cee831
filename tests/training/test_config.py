"""A config that cannot run is refused by the name of its field."""

import importlib.util
from pathlib import Path

import pytest

from vqjax.errors import UserError
from vqjax.models.build import build_model
from vqjax.training.config import default_config, parse_variant, validate

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
    config = default_config()
    config.num_steps, config.data.source = 10, "photos"
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        validate(config)


def test_a_field_that_the_trainer_never_reads_is_refused():
    config = default_config()
    config.quantizer.num_code = 3
    with pytest.raises(UserError, match=r"num_code is unknown: did you mean 'quantizer\.num_codes'\?"):
        validate(config)
