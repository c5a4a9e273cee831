import threading

import numpy as np
import pytest

from vqjax.data import evaluation_batches
from vqjax.errors import UserError


def test_every_image_comes_once_in_order_and_the_rest_of_the_last_batch_is_marked(numbered_images):
    batches = list(evaluation_batches(numbered_images(21), batch_size=8))
    assert [batch["image"].shape for batch in batches] == [(8, 4, 4, 3)] * 3
    images = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    assert images[:, 0, 0, 0].tolist() == list(range(21))
    assert batches[-1]["valid"].tolist() == [True] * 5 + [False] * 3
    assert not batches[-1]["image"][5:].any()


def test_an_unreadable_image_takes_no_place(numbered_images, warnings_logged):
    (batch,) = evaluation_batches(numbered_images(9, broken=[4]), batch_size=8)
    assert batch["valid"].all()
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert warnings_logged[-1] == "numbered: skipped 1 unreadable images of 9"


def test_a_loop_may_stop_early(numbered_images):
    before = set(threading.enumerate())
    batches = evaluation_batches(numbered_images(100), batch_size=2)
    next(batches)
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
    assert set(threading.enumerate()) <= before


def test_nothing_readable_is_an_error(numbered_images):
    with pytest.raises(UserError, match="none of its 2 images"):
        list(evaluation_batches(numbered_images(2, broken=[0, 1]), batch_size=2))


def test_labels_are_padded_like_images(numbered_images):
    *_, last = evaluation_batches(numbered_images(11, labelled=True), batch_size=8)
    assert last["label"].dtype == np.int32
    assert last["label"].tolist() == [8, 9, 0, 0, 0, 0, 0, 0]
    assert last["valid"].tolist() == [True] * 3 + [False] * 5
