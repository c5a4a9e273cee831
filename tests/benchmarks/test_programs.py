"""What is read from the text of programs, and the shapes that programs are compiled for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.compiled import Case, Setting, training
from benchmarks.programs import Array, Program
from vqjax.data import make_feed
from vqjax.data.arrays import ArrayDataset
from vqjax.training.config import validate
from vqjax.training.devices import make_mesh


def compiled(function, *shapes, axes=()):
    mesh = make_mesh(None, {})
    specs = [*axes, *[()] * len(shapes)]
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*of_shape)))
        for shape, of_shape in zip(shapes, specs, strict=False)
    ]
    return Program(jax.jit(function).lower(*arguments).compile().as_text())


def test_what_crosses_devices_counts_once_for_each_turn_of_a_loop():
    total = compiled(lambda x: jnp.sum(x, axis=0), (16, 1000), axes=[("data",)])
    assert total.exchanged() == [4000]

    def three_times(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: y + jnp.sum(jnp.sin(x * y[None]), axis=0), jnp.ones(1000))

    assert sum(compiled(three_times, (16, 1000), axes=[("data",)]).exchanged()) == 12_000


def test_products_of_a_program():
    program = compiled(lambda x, y: x @ y, (32, 48), (48, 64))
    (product,) = program.products
    assert (product.is_convolution, product.place.rpartition("/")[2]) == (False, "dot_general")


def test_collectives_that_only_start_are_counted_without_their_operands():
    text = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = s64[2]{0} constant({1, 2})
  %start = ((f32[4]{0}, s64[2]{0}), (f32[4]{0}, s64[2]{0})) all-reduce-start(%x, %y), to_apply=%add
  %sent = (f32[4]{0}, u32[]) send(%x), channel_id=1
  %dot = f32[4,4]{1,0} dot(%x, %x), algorithm=dot_tf32_tf32_f32_x3, metadata={op_name="jit(f)/search"}
  ROOT %exact = f32[4,4]{1,0} dot(%x, %x), operand_precision={highest,highest}
}
"""
    program = Program(text)
    assert program.exchanged() == [16, 16]
    assert Array("s64", (2,)) in program.wide
    assert program.to_the_host == ["send "]
    assert program.counted() == {"xla 3 tf32": 1, "xla f32": 1}
    assert program.products[0].place == "jit(f)/search"
    assert program.matrices(4, 4) == [Array("f32", (4, 4))] * 2


@pytest.mark.full
@pytest.mark.parametrize("resident_limit_mb", [0, 1])
def test_programs_are_for_what_a_feed_stages(config, resident_limit_mb):
    config.data.resident_limit_mb = resident_limit_mb
    config = validate(config)
    work = training(Setting(Case("", examples=48, classes=3), config), jax.devices(), steps=2)
    mesh = work.arguments[3].sharding.mesh
    images = ArrayDataset("black", np.zeros((48, 16, 16, 3), np.uint8), 16, np.arange(48, dtype=np.int32) % 3)
    feed = make_feed(
        images,
        seed=0,
        batch_size=config.batch_size,
        steps_per_dispatch=2,
        resident_limit=resident_limit_mb * 2**20,
        mesh=mesh,
    )
    described = [
        jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), t) for t in (feed.stage(0, 2), work.arguments[2])
    ]
    assert described[0] == described[1]
    feed.close()
