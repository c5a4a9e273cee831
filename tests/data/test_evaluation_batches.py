import numpy as np
import pytest

from vqjax.data import evaluation_batches
from vqjax.errors import UserError


def test_every_image_comes_once_in_order_and_the_rest_of_the_last_batch_is_marked(numbered_images):
    batches = list(evaluation_batches(numbered_images(21), batch_size=8))
    assert [images.shape for images, _ in batches] == [(8, 4, 4, 3)] * 3
    assert np.concatenate([images[valid][:, 0, 0, 0] for images, valid in batches]).tolist() == list(range(21))
    images, valid = batches[-1]
    assert valid.tolist() == [True] * 5 + [False] * 3
    assert not images[5:].any()


def test_an_unreadable_image_takes_no_place(numbered_images, warnings_logged):
    ((images, valid),) = evaluation_batches(numbered_images(9, broken=[4]), batch_size=8)
    assert valid.all()
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert warnings_logged[-1] == "numbered: skipped 1 unreadable images of 9"


def test_a_loop_may_stop_early(numbered_images):
    batches = evaluation_batches(numbered_images(100), batch_size=2)
    next(batches)
    batches.close()


def test_nothing_readable_is_an_error(numbered_images):
    with pytest.raises(UserError, match="none of its 2 images"):
        list(evaluation_batches(numbered_images(2, broken=[0, 1]), batch_size=2))
