"""Classifiers beside the same networks in PyTorch, with the quantizers of vqtorch where its source is on the path."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import GradientCodebook, VectorQuantizer
from vqjax.data.arrays import ArrayDataset
from vqjax.losses.classification import CrossEntropy
from vqjax.models.classifiers import ResNet18, name_at
from vqjax.quantizers import LearnedAffine
from vqjax.quantizers.weightings import vqtorch as vqtorch_weights
from vqjax.tasks.classification import CLASSIFIER, ClassificationTask

torch = pytest.importorskip("torch")

from benchmarks.peers.torch_classifier import ResNet18 as TorchResNet18  # noqa: E402 (needs torch)

WIDTH, CODES, DIM, CLASSES = 4, 8, 8, 5
PLACE = name_at("stage_2")


@functools.cache
def vqtorch_nn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "vqtorch.nn", reason="comparisons with vqtorch need its source, and string-color, on PYTHONPATH"
        )


def batch_of(count=6):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return {"image": images, "label": random.integers(0, CLASSES, count).astype(np.int32)}


def pixels(images):
    return torch.tensor(images).permute(0, 3, 1, 2).double() / 127.5 - 1


def ported(state):
    """Parameters of ours by the names of theirs, but for the quantizer's."""
    arrays = {}
    for name, values in state.items():
        if name == PLACE:
            continue
        if name.startswith("stage_"):
            _, stage, _, block, rest = name.split("_", 4)
            name = f"stages.{int(stage) - 1}.{int(block) - 1}.{rest}"
        for key, value in values.items():
            value = np.asarray(value)
            entry = {"kernel": "weight", "scale": "weight", "bias": "bias"}[key]
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim if key == "kernel" else 0)
            arrays[f"{name}.{entry}"] = torch.tensor(value.transpose(axes) if axes else value)
    return arrays


def networks(quantizer, theirs):
    """The same network twice, with weights that leave no gradient at zero."""
    ours = ResNet18(CLASSES, {} if quantizer is None else {"stage_2": quantizer}, width=WIDTH)
    variables = ours.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    # In float32, PyTorch 2.13 was seen to return another gradient of a strided 1x1 kernel in 385 of 1,055 calls.
    network = TorchResNet18(WIDTH, CLASSES, theirs).train().double()
    loaded = network.load_state_dict(ported(params), strict=False)
    assert not loaded.unexpected_keys
    assert all("running" in key or "num_batches" in key or "quantizer" in key for key in loaded.missing_keys)
    return ours, variables | {"params": params}, network


def assert_equal_gradients(gradient, network):
    theirs = {name: value.grad for name, value in network.named_parameters() if not name.startswith("quantizer")}
    ours = ported(gradient)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        scale = float(value.abs().max())
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4 * scale + 1e-7, err_msg=name)


def test_scores_gradients_and_averages_of_resnet():
    ours, variables, network = networks(None, None)
    batch = batch_of()

    def loss_of(params):
        images = jnp.asarray(batch["image"]) / 127.5 - 1
        output, moved = ours.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        loss = CrossEntropy(DATA, label_smoothing=0.1)(output.logits, jax.nn.one_hot(batch["label"], CLASSES))
        return loss, (output.logits, moved)

    gradient, (logits, moved) = jax.jit(jax.grad(loss_of, has_aux=True))(variables["params"])
    scores, _ = network(pixels(batch["image"]))
    np.testing.assert_allclose(logits, scores.detach(), rtol=1e-3, atol=1e-4)
    target = torch.tensor(batch["label"]).long()
    torch.nn.functional.cross_entropy(scores, target, label_smoothing=0.1).backward()
    assert_equal_gradients(gradient, network)
    means = moved["batch_stats"]["stage_3_block_1_norm_2"]["mean"]
    np.testing.assert_allclose(means, network.stages[2][0].norm_2.running_mean, rtol=1e-3, atol=1e-5)


class OfVqtorch(torch.nn.Module):
    """A quantizer of vqtorch, as their classifier takes it."""

    def __init__(self, **options):
        super().__init__()
        self.vq = vqtorch_nn().VectorQuant(DIM, CODES, dim=1, **options)

    def forward(self, x):
        quantized, returned = self.vq(x)
        return quantized, returned["loss"]


DATA = ArrayDataset("random", batch_of()["image"], 16, batch_of()["label"], tuple("abcde"))


@pytest.mark.parametrize(("nu", "affine_lr"), [(0.0, 0.0), (0.3, 0.0), (0.0, 2.0), (0.3, 2.0)])
def test_gradients_of_a_classifier_around_affine_and_synchronized_codes(nu, affine_lr):
    theirs = OfVqtorch(beta=0.75, sync_nu=nu, affine_lr=affine_lr)
    transform = LearnedAffine(affine_lr) if affine_lr else None
    quantizer = VectorQuantizer(
        num_codes=CODES,
        estimator="straight_through",
        **vqtorch_weights(0.75, sync_nu=nu, transform=transform),
    )
    ours, variables, network = networks(quantizer, theirs)
    params, batch = variables["params"], batch_of()
    own = params[PLACE]
    with torch.no_grad():
        theirs.vq.codebook.weight.copy_(torch.tensor(np.asarray(own["codes"])))
        if transform:
            theirs.vq.affine_transform.scale.copy_(torch.tensor(np.asarray(own["codebook_transform"]["scale"])))
            theirs.vq.affine_transform.bias.copy_(torch.tensor(np.asarray(own["codebook_transform"]["shift"])))
    scores, of_quantizer = network(pixels(batch["image"]))
    loss = torch.nn.functional.cross_entropy(scores, torch.tensor(batch["label"]).long()) + of_quantizer
    loss.backward()

    task = ClassificationTask(ours, optax.sgd(1.0), CrossEntropy(DATA))
    state = task.init(jax.random.key(0), batch)
    state = state.replace(params={CLASSIFIER: params})
    after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
    # SGD with a rate of 1 subtracts the gradient.
    gradient = jax.tree.map(lambda x, y: x - y, params, after.params[CLASSIFIER])
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    assert_equal_gradients(gradient, network)
    pairs = [(gradient[PLACE]["codes"], theirs.vq.codebook.weight.grad)]
    if transform:
        moved, of_theirs = gradient[PLACE]["codebook_transform"], theirs.vq.affine_transform
        pairs += [(moved["scale"], of_theirs.scale.grad), (moved["shift"], of_theirs.bias.grad)]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_a_step_of_the_codes_alone_in_a_classifier():
    theirs = OfVqtorch(beta=1.0, inplace_optimizer=lambda parameters: torch.optim.SGD(parameters, 3.0, momentum=0.9))
    quantizer = VectorQuantizer(
        num_codes=CODES, estimator="straight_through", commitment_weight=0.0, codebook=GradientCodebook(weight=0.0)
    )
    ours, variables, network = networks(quantizer, theirs)
    params, batch = variables["params"], batch_of()
    before = np.asarray(params[PLACE]["codes"])
    with torch.no_grad():
        theirs.vq.codebook.weight.copy_(torch.tensor(before))
    network(pixels(batch["image"]))
    options = {"codebook_steps": 1, "codebook_learning_rate": 3.0, "codebook_momentum": 0.9}
    task = ClassificationTask(ours, optax.sgd(0.0), CrossEntropy(DATA), **options)
    state = task.init(jax.random.key(0), batch)
    state = state.replace(params={CLASSIFIER: params})
    after = jax.jit(task.train_step)(state, batch, jax.random.key(1))[0].params[CLASSIFIER][PLACE]["codes"]
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, theirs.vq.codebook.weight.detach(), rtol=1e-4, atol=1e-6)
