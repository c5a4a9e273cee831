"""A published tokenizer becomes a run, which is evaluated, trained and loaded like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from helpers.goldens import assert_equal, channels_last, golden, weights
from helpers.tokenizers import CONFIG, state_dict
from helpers.torch_files import Call, Name, write_archive
from vqjax import UserError, load_tokenizer
from vqjax.checkpointing.checkpoints import load_networks
from vqjax.importing import taming
from vqjax.training.cli import train_command
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.import_run import import_checkpoint, import_origin


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a training with taming-transformers, with an object of Lightning in it."""
    callbacks = Call(Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"))
    path = tmp_path_factory.mktemp("published") / "last.ckpt"
    return write_archive(path, {"epoch": 1, "callbacks": callbacks, "state_dict": state_dict()})


def fields(images_file):
    return [
        "--config.data.source=arrays",
        f"--config.data.name={images_file}",
        "--config.data.image_size=16",
        "--config.batch_size=8",
        "--config.tensorboard=false",
    ]


@pytest.mark.full
def test_evaluation_training_and_loading_go_on_from_it(tmp_path, checkpoint, images_file):
    workdir = tmp_path / "run"
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"target": "taming", "params": CONFIG}}))
    options = {"workdir": workdir, "config": str(tmp_path / "model.yaml")}
    import_checkpoint(checkpoint, *fields(images_file), "--config.quantizer.estimator=rotation", **options)
    images = np.load(images_file)["test"]
    model, variables = taming(state_dict(), CONFIG)
    tokenizer = load_tokenizer(workdir)
    assert (tokenizer.step, tokenizer.model.quantizer.estimator) == (0, "rotation")
    assert import_origin(workdir) == f"`{checkpoint.name}`, of the format taming"
    expected = model.apply(variables, jnp.asarray(images, jnp.float32) / 127.5 - 1, train=False)
    indices = tokenizer.encode(images)
    np.testing.assert_array_equal(indices, expected.quantizer.indices)
    np.testing.assert_allclose(tokenizer.decode(indices), expected.reconstruction, atol=1e-5)
    # The numbers of the evaluation are those of the original.
    reconstruction = np.clip(np.asarray(expected.reconstruction, np.float64), -1, 1)
    difference = (reconstruction - (images / 127.5 - 1)) / 2
    assert evaluate_workdir(workdir).metrics["mse_01"] == pytest.approx(np.mean(difference**2), rel=1e-4)

    train_command("--config.num_steps=2", workdir=str(workdir))
    trained = load_networks(workdir)
    assert trained.info.step == 2
    assert trained.info.config["quantizer"]["estimator"] == "rotation"
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained.params["generator"], variables["params"])
    # Two steps of Adam at a rate of 1e-5.
    assert 0 < max(jax.tree.leaves(change)) < 3e-5
    with pytest.raises(UserError, match=r"--workdir must be a directory without a run"):
        import_checkpoint(checkpoint, workdir=workdir)


@pytest.mark.full
def test_a_discriminator_and_averages_join_it(tmp_path, checkpoint, images_file):
    task = ["--config.task.name=vqgan", "--config.task.ema_decay=0.9", "--config.task.discriminator.num_layers=2"]
    overrides = [*fields(images_file), "--config.data.image_size=32", *task]
    with pytest.raises(UserError, match=r"config\.data"):
        import_checkpoint(checkpoint, *overrides[:-4], "--config.data.image_size=33", workdir=tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
    images = np.zeros((16, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", train=images, test=images)
    overrides[1] = f"--config.data.name={tmp_path / 'images.npz'}"
    import_checkpoint(checkpoint, *overrides, workdir=tmp_path / "run")
    networks = load_networks(tmp_path / "run")
    assert networks.params.keys() == {"generator", "discriminator"}
    for params in (networks.params, networks.ema_params):
        np.testing.assert_array_equal(
            params["generator"]["quantizer"]["codes"], state_dict()["quantize.embedding.weight"]
        )
    train_command("--config.num_steps=1", workdir=str(tmp_path / "run"))
    assert load_networks(tmp_path / "run").info.step == 1


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("[1, 2]", (), "must hold parameters by name, got list"),
        ("{", (), "must be a YAML or JSON file"),
        ("ddconfig: 3", (), "config must be that of the original model, but cannot be used"),
        ("n_embed: 17", (), r"quantize.embedding.weight must have shape \[17, 4\], got \[16, 4\]"),
        ("ddconfig: {ch_mult: [1, -2]}", (), "multipliers must be"),
        (None, ("--config.quantizer.codebook.name=ema",), "must keep the parameters of the imported tokenizer"),
        (None, ("--config.model.channels=64",), "must keep the parameters of the imported tokenizer"),
        (None, ("--config.model.width=64",), "config.model.width is unknown"),
    ],
)
@pytest.mark.full
def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, checkpoint, images_file, config, overrides, message):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    options = {"config": None if config is None else str(tmp_path / "config.yaml"), "workdir": tmp_path / "run"}
    with pytest.raises(UserError, match=message) as error:
        import_checkpoint(checkpoint, *fields(images_file), *overrides, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_tokenizer_of_other_pixels_takes_images_like_all_others(tmp_path):
    arrays, _ = golden("vit_vqgan")
    path = write_archive(tmp_path / "last.ckpt", {"state_dict": weights(arrays)})
    x = np.asarray(channels_last(arrays["x"]))
    assert 0 <= x.min() < x.max() <= 1
    images = np.zeros((16, *x.shape[1:]), np.uint8)
    np.savez(tmp_path / "images.npz", train=images, test=images)
    overrides = fields(tmp_path / "images.npz")
    overrides[2] = f"--config.data.image_size={x.shape[1]}"
    import_checkpoint(path, *overrides, workdir=tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run")
    indices = tokenizer.encode(2 * x - 1)
    np.testing.assert_array_equal(np.reshape(indices, (len(x), -1)), arrays["indices"])
    assert_equal((tokenizer.decode(indices) + 1) / 2, channels_last(arrays["reconstruction"]))
