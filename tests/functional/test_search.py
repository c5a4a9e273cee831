"""The search against float64 brute force, on the data that made other implementations pick wrong codes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from helpers.searching import CODES, DATA, DIM, TOKENS, data, distances, equal_codes, wrong
from vqjax import EMACodebook, GradientCodebook, Replacement, VectorQuantizer
from vqjax.errors import UserError
from vqjax.functional import chunks
from vqjax.functional import search as nearest
from vqjax.functional.search import nearest_codes, nearest_k_codes, nearest_own_codes, sample_codes, similarity

Z, E = gaussian(40, 4), gaussian(12, 4, seed=1)


@pytest.fixture(params=["tiles", "chunks"])
def small_chunks(monkeypatch, request):
    """Chunks of 7 codes: 43 of them, the last one with a single padding row; all 500 tokens or tiles of 42 and 38."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 7 * TOKENS)
    monkeypatch.setattr(nearest, "_CHUNK_ELEMENTS", 7 * TOKENS)
    monkeypatch.setattr(nearest, "_MIN_CODES_PER_CHUNK", 1)
    monkeypatch.setattr(nearest, "_CODES_PER_TILE", 7)
    monkeypatch.setattr(nearest, "_TILE_ELEMENTS", 7 * 42)
    # The form of a search follows the platform; the CPU can run both.
    monkeypatch.setattr(nearest, "_nearest_in_tiles", getattr(nearest, f"_nearest_in_{request.param}"))


def textbook(z, codes):
    return np.argmin(np.sum(z**2, 1)[:, None] - 2 * z @ codes.T + np.sum(codes**2, 1), axis=1)


@pytest.mark.parametrize("name", DATA)
def test_every_code_is_the_nearest(name):
    z, codes = data(name)
    assert wrong(z, codes, np.asarray(nearest_codes(jnp.asarray(z), jnp.asarray(codes)))) == 0


def test_the_textbook_formula_fails_where_this_one_does_not():
    # |z|^2 - 2 z.e + |e|^2 in float32 loses the answer in the rounding of |z|^2: this data can tell.
    assert wrong(*data("far from the origin"), textbook(*data("far from the origin"))) > 0


@pytest.mark.parametrize("name", DATA)
def test_chunks_change_nothing(name, small_chunks):
    z, codes = data(name)
    assert wrong(z, codes, np.asarray(nearest_codes(jnp.asarray(z), jnp.asarray(codes)))) == 0


@pytest.mark.parametrize("name", DATA)
def test_parts_of_the_codebook_change_nothing(name, small_chunks):
    z, codes = data(name)
    assert wrong(z, codes, np.asarray(nearest_codes(jnp.asarray(z), jnp.asarray(codes), shards=4))) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shards": 7}, r"shards must be an integer that divides the number of codes, 300, got 7"),
        ({"shards": 0}, r"shards must be .*, got 0"),
    ],
)
def test_shards_that_do_not_divide_the_codes_are_refused(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        nearest_codes(jnp.zeros((3, DIM)), jnp.zeros((CODES, DIM)), **arguments)


def test_ties_go_to_the_lowest_index():
    indices = nearest_codes(jnp.zeros((TOKENS, DIM)), jnp.asarray(equal_codes()))
    np.testing.assert_array_equal(indices, 3)


def test_ties_between_chunks_and_with_the_padding_go_to_the_lowest_index(small_chunks):
    indices = nearest_codes(jnp.zeros((TOKENS, DIM)), jnp.asarray(equal_codes()))
    np.testing.assert_array_equal(indices, 3)
    indices = nearest_codes(jnp.zeros((TOKENS, DIM)), jnp.asarray(equal_codes()), shards=100)
    np.testing.assert_array_equal(indices, 3)
    # Padding repeats code 0.
    indices = nearest_codes(jnp.ones((TOKENS, DIM)), jnp.asarray(equal_codes()))
    np.testing.assert_array_equal(indices, 0)


def test_one_code():
    indices = nearest_codes(jnp.asarray(data("gaussian")[0]), jnp.ones((1, DIM)))
    np.testing.assert_array_equal(indices, 0)


@pytest.mark.parametrize("shape", [(), (1,), (500,), (5, 4, 25), (0, 3)])
def test_any_leading_axes(shape):
    z, codes = data("gaussian")
    z = z[: int(np.prod(shape))]
    indices = nearest_codes(jnp.asarray(z).reshape(*shape, DIM), jnp.asarray(codes))
    assert (indices.shape, indices.dtype) == (shape, jnp.int32)
    np.testing.assert_array_equal(indices.reshape(-1), np.argmin(distances(z, codes), axis=1))


def test_bfloat16_vectors_are_searched_in_float32():
    # Distances in bfloat16 pick a wrong code for 3.5 % of Gaussian tokens, and for 99 % of these.
    z, codes = data("far from the origin")
    short = jnp.asarray(z, jnp.bfloat16)
    assert wrong(np.asarray(short, np.float32), codes, np.asarray(nearest_codes(short, jnp.asarray(codes)))) == 0


def test_products_ask_for_float32_accuracy():
    # The default of a GPU rounds their inputs to TF32, which CPU tests cannot see in the numbers.
    of_each_platform = products(nearest_codes, *map(jnp.asarray, data("gaussian")))
    assert len(of_each_platform) == 2
    for product in of_each_platform:
        assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


def test_the_search_has_no_gradient_and_is_not_done_twice_for_one():
    z, codes = map(jnp.asarray, data("gaussian"))

    def loss(z, codes):
        return jnp.sum(codes[nearest_codes(z, codes)] * z)

    gradient, _ = jax.grad(loss, argnums=(0, 1))(z, codes)
    np.testing.assert_array_equal(gradient, codes[nearest_codes(z, codes)])
    assert len(products(jax.grad(loss, argnums=(0, 1)), z, codes)) == 2  # one for each platform


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def products(function, *arguments):
    program = jax.make_jaxpr(function)(*arguments)
    return [equation for equation in equations(program.jaxpr) if equation.primitive.name == "dot_general"]


def largest_array(function, *arguments):
    """Elements of the largest array that a program makes."""
    program = jax.make_jaxpr(function)(*arguments)
    return max(int(np.prod(out.aval.shape)) for equation in equations(program.jaxpr) for out in equation.outvars)


@pytest.mark.parametrize(
    ("search", "largest"),
    [
        (nearest._nearest_in_tiles, nearest._TILE_ELEMENTS),
        (nearest._nearest_in_chunks, nearest._CHUNK_ELEMENTS),
        (nearest_codes, nearest._CHUNK_ELEMENTS),
    ],
)
def test_no_array_of_tokens_by_codes_is_made(search, largest):
    # 65 536 tokens and 16 384 codes are 4 GiB of scores; at once is what the peers hold six times.
    z, codes = jax.ShapeDtypeStruct((2**16, 8), jnp.float32), jax.ShapeDtypeStruct((2**14, 8), jnp.float32)
    assert largest_array(search, z, codes) == largest


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("tpu",), ("cpu", "cuda")])
def test_the_form_of_the_search_is_that_of_the_platform_it_is_compiled_for(platforms):
    """It was that of the process: a program exported for a GPU from a machine without one held the CPU's tiles."""
    z, codes = jax.ShapeDtypeStruct((4096, 8), jnp.float32), jax.ShapeDtypeStruct((2048, 8), jnp.float32)
    program = jax.export.export(jax.jit(nearest_codes), platforms=platforms)(z, codes).mlir_module()
    assert ("1024x1024xf32" in program) == ("cpu" in platforms)
    assert ("4096x2048xf32" in program) == (platforms != ("cpu",))


@pytest.mark.parametrize("codebook", [EMACodebook, GradientCodebook])
def test_no_array_of_tokens_by_codes_is_made_in_a_training_step(codebook):
    vq = VectorQuantizer(num_codes=2**14, codebook=codebook(replace=Replacement()))
    z, key = jax.ShapeDtypeStruct((2**16, 8), jnp.float32), jax.random.key(0)
    variables = jax.eval_shape(vq.init, key, z)

    def step(params, state, z):
        out, updates = vq.apply(
            {"params": params} | state, z, train=True, mutable=["codebook"], rngs={"quantizer": key}
        )
        return out.loss + jnp.sum(out.quantized), updates

    params = variables.get("params", {})
    state = {"codebook": variables["codebook"]}
    gradient = jax.grad(step, argnums=(0, 2), has_aux=True)
    assert largest_array(gradient, params, state, z) <= nearest._CHUNK_ELEMENTS


def test_a_token_that_is_not_a_number_gets_an_index_that_exists(small_chunks):
    z, codes = map(jnp.asarray, data("gaussian"))
    indices = nearest_codes(z.at[3].set(jnp.nan), codes)
    assert 0 <= indices[3] < CODES
    np.testing.assert_array_equal(np.delete(indices, 3), np.delete(nearest_codes(z, codes), 3))


@pytest.mark.parametrize(
    ("minimum", "fill"),
    [
        *itertools.product((nearest._minimum, nearest._minimum_in_two_passes), (np.inf, -np.inf, 3.0)),
        (nearest._minimum, np.nan),
    ],
)
def test_equal_scores_of_any_kind_have_an_index_that_exists(minimum, fill):
    """On a GPU the scores of two passes differed in their last bit, and an index was behind the last code."""
    score, index = minimum(jnp.full((3, 5), fill))
    np.testing.assert_array_equal(score, np.full(3, fill))
    assert np.all((index >= 0) & (index < 5))


def test_similarity_is_the_negative_distance_also_far_from_the_origin():
    z, codes = Z + 1000, E + 1000
    expected = -np.linalg.norm(np.asarray(z, np.float64)[:, None] - np.asarray(codes, np.float64), axis=-1)
    np.testing.assert_allclose(similarity(z, codes, "euclidean"), expected, rtol=1e-3)


@pytest.mark.parametrize("budget", [2**23, 5 * 12])
def test_the_k_nearest_are_in_order_with_ties_to_the_lowest(monkeypatch, budget):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    codes = E.at[7].set(E[2])
    distances = np.sum((np.asarray(Z, np.float64)[:, None] - np.asarray(codes, np.float64)) ** 2, -1)
    expected = np.argsort(distances, axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(nearest_k_codes(Z, codes, 5), expected)
    np.testing.assert_array_equal(nearest_k_codes(Z, codes, 1)[:, 0], nearest_codes(Z, codes))


@pytest.mark.parametrize("k", [0, 13, True])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(UserError, match=rf"k must be an integer in \[1, 12\], the number of codes, got {k}"):
        nearest_k_codes(Z, E, k)


def test_own_codebooks_that_are_equal_are_one_codebook():
    own = jnp.broadcast_to(E, (40, 12, 4))
    np.testing.assert_array_equal(nearest_own_codes(Z, own), nearest_codes(Z, E))


@pytest.mark.parametrize("budget", [2**23, 100])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codes_are_drawn_as_often_as_the_softmax_says(monkeypatch, budget, distance):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    codes = gaussian(4, 2, seed=5)
    token = np.array([0.3, -0.2])
    drawn = sample_codes(
        jax.random.key(0),
        jnp.tile(jnp.asarray(token, jnp.float32), (20_000, 1)),
        codes,
        temperature=0.5,
        distance=distance,
    )
    away = np.linalg.norm(token - np.asarray(codes), axis=-1)
    expected = np.exp((np.asarray(codes) @ token if distance == "cosine" else -away) / 0.5)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, expected / expected.sum(), atol=0.015)
