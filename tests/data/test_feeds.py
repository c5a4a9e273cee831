import jax
import numpy as np
import pytest

from vqjax.data import Feed, ResidentFeed, StreamedFeed, batch_indices, make_feed
from vqjax.errors import UserError

OPTIONS = {"seed": 3, "batch_size": 8, "steps_per_dispatch": 4}


def make(kind, dataset, mesh, **changes):
    feed = {"resident": ResidentFeed, "streamed": StreamedFeed}[kind]
    return feed(dataset, **OPTIONS | {"mesh": mesh} | changes)


@pytest.fixture(params=["resident", "streamed"])
def kind(request):
    return request.param


def batches(feed, step, count):
    """The numbers of the images of each of `count` steps, read as the trainer reads them: in one jitted loop."""
    staged = feed.stage(step, count)
    select = jax.jit(feed.select)
    return [np.asarray(select(staged, i)["image"])[:, 0, 0, 0].tolist() for i in range(count)]


def expected(step, count, num_images=37):
    return [batch_indices(3, step + i, 8, num_images).tolist() for i in range(count)]


def test_both_feeds_follow_the_order_across_epochs_on_one_and_on_eight_devices(kind, mesh, numbered_images):
    feed = make(kind, numbered_images(37), mesh)
    assert isinstance(feed, Feed)
    assert (feed.num_images, feed.batch_spec["image"].shape) == (37, (8, 4, 4, 3))
    for step in (0, 4, 8):
        assert batches(feed, step, 4) == expected(step, 4)
    feed.close()


def test_a_short_stage_loses_no_batch(kind, eight_devices, numbered_images):
    feed = make(kind, numbered_images(37), eight_devices)
    assert batches(feed, 0, 3) + batches(feed, 3, 1) + batches(feed, 4, 4) == expected(0, 8)
    feed.close()


def test_a_resumed_run_continues_where_the_first_one_stopped(kind, eight_devices, numbered_images):
    feed = make(kind, numbered_images(37), eight_devices)
    assert batches(feed, 1001, 4) == expected(1001, 4)
    assert batches(feed, 1005, 2) == expected(1005, 2)
    feed.close()


def test_staged_shapes_do_not_depend_on_the_count_so_that_the_step_compiles_once(kind, eight_devices, numbered_images):
    feed = make(kind, numbered_images(37), eight_devices)
    traces = []

    @jax.jit
    def select(staged, i):
        traces.append(i)
        return feed.select(staged, i)

    for step, count in ((0, 4), (4, 1), (5, 3)):
        select(feed.stage(step, count), 0)
    assert len(traces) == 1
    feed.close()


@pytest.mark.parametrize("count", [1, 4])
def test_staged_arrays_are_as_described(kind, mesh, numbered_images, count):
    """The step is compiled for the description, before anything is staged."""
    feed = make(kind, numbered_images(37), mesh)
    described, staged = (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)
        for tree in (feed.staged_spec, feed.stage(0, count))
    )
    assert described == staged
    feed.close()


def test_each_device_holds_its_share_of_the_batch(kind, eight_devices, numbered_images):
    feed = make(kind, numbered_images(37), eight_devices)
    selected = jax.jit(feed.select)(feed.stage(0, 4), 2)["image"]
    assert [shard.data.shape for shard in selected.addressable_shards] == [(1, 4, 4, 3)] * 8
    feed.close()


def test_a_stream_replaces_an_unreadable_image_by_the_next_one_and_names_it_once(
    mesh, numbered_images, warnings_logged
):
    feed = StreamedFeed(numbered_images(8, broken=[2, 6, 7]), mesh=mesh, **OPTIONS)
    replacement = {2: 3, 6: 0, 7: 0}
    wanted = [[replacement.get(i, i) for i in step] for step in expected(0, 4, num_images=8)]
    assert batches(feed, 0, 4) == wanted
    feed.close()
    named = [line for line in warnings_logged if "skipped unreadable image" in line]
    assert len(named) == len(set(named)) == 3
    assert warnings_logged[-1] == "numbered: skipped 3 unreadable images of 8"


def test_a_stream_whose_images_are_gone_says_so_and_ends(eight_devices, numbered_images):
    """It looked for a readable one for ever."""
    dataset = numbered_images(8)
    feed = make("streamed", dataset, eight_devices)
    dataset.broken = set(range(8))
    with pytest.raises(UserError, match=r"numbered must have readable images, got none any more, .* still there"):
        feed.stage(0, 1)
    feed.close()


def test_a_stream_closed_twice_or_never_started_does_not_complain(eight_devices, numbered_images):
    feed = make("streamed", numbered_images(37), eight_devices)
    feed.close()
    feed.stage(0, 1)
    feed.close()
    feed.close()


def test_a_stream_reports_a_defect_of_the_dataset_where_the_trainer_can_see_it(eight_devices, numbered_images):
    class Defective(numbered_images):
        def __getitem__(self, index):
            if index:
                raise ZeroDivisionError
            return super().__getitem__(index)

    feed = StreamedFeed(Defective(37), mesh=eight_devices, **OPTIONS)
    with pytest.raises(ZeroDivisionError):
        feed.stage(0, 4)
    feed.close()


def test_make_feed_keeps_resident_what_fits_and_streams_the_rest(eight_devices, numbered_images):
    dataset = numbered_images(37)
    size = 37 * 4 * 4 * 3
    resident = make_feed(dataset, mesh=eight_devices, resident_limit=size, **OPTIONS)
    streamed = make_feed(dataset, mesh=eight_devices, resident_limit=size - 1, **OPTIONS)
    assert (type(resident), type(streamed)) == (ResidentFeed, StreamedFeed)
    assert batches(resident, 6, 4) == batches(streamed, 6, 4)
    streamed.close()


@pytest.mark.parametrize("resident_limit", [0, 10**9])
@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (12, r"batch_size must be a positive multiple of 8 to be divided over 8 devices, got 12; use 16"),
        (0, r"batch_size must be a positive multiple of 8 to be divided over 8 devices, got 0; use 8"),
        (40, r"batch_size must be at most 37, the number of training images, got 40"),
    ],
)
def test_batches_that_do_not_fit_are_refused(eight_devices, numbered_images, batch_size, message, resident_limit):
    options = OPTIONS | {"batch_size": batch_size, "mesh": eight_devices}
    with pytest.raises(UserError, match=message):
        make_feed(numbered_images(37), resident_limit=resident_limit, **options)


@pytest.mark.parametrize("resident_limit", [0, 10**9])
def test_data_without_a_readable_image_is_refused(eight_devices, numbered_images, resident_limit):
    dataset = numbered_images(8, broken=range(8))
    with pytest.raises(UserError, match="none of its 8 images can be read"):
        make_feed(dataset, mesh=eight_devices, resident_limit=resident_limit, **OPTIONS)


def labels_and_levels(batch):
    return np.asarray(batch["label"]).tolist(), (np.asarray(batch["image"])[:, 0, 0, 0] % 10).tolist()


def test_labels_stay_with_their_images(kind, mesh, numbered_images):
    """Also where an unreadable image of a stream is replaced by the next one."""
    feed = make(kind, numbered_images(37, broken=[5, 6], labelled=True), mesh)
    assert feed.batch_spec["label"] == jax.ShapeDtypeStruct((8,), np.int32)
    staged, select = feed.stage(0, 4), jax.jit(feed.select)
    for i in range(4):
        labels, levels = labels_and_levels(select(staged, i))
        assert labels == levels
    feed.close()


def test_labels_change_no_image(kind, eight_devices, numbered_images):
    plain, labelled = (make(kind, numbered_images(37, labelled=labelled), eight_devices) for labelled in (False, True))
    assert batches(plain, 3, 4) == batches(labelled, 3, 4)
    plain.close(), labelled.close()
