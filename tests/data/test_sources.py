import numpy as np
import pytest

from vqjax.data import ImageDataset, materialize
from vqjax.data.arrays import ArrayDataset
from vqjax.errors import UserError


def test_any_class_with_the_four_members_is_a_dataset(numbered_images):
    assert isinstance(numbered_images(3), ImageDataset)


def test_materialize_keeps_the_order(numbered_images):
    images = materialize(numbered_images(200))["image"]
    assert images.shape == (200, 4, 4, 3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(200))


def test_materialize_keeps_the_order_over_several_chunks():
    # One megabyte is read at a time, so 30 images of 196,608 bytes take six chunks.
    source = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 256, 256, 3), np.uint8)
    np.testing.assert_array_equal(materialize(ArrayDataset("large", source, image_size=256))["image"], source)


def test_unreadable_images_are_left_out_named_up_to_five_and_counted(numbered_images, warnings_logged):
    images = materialize(numbered_images(20, broken=[0, 3, 4, 7, 8, 9, 19]))["image"]
    assert images[:, 0, 0, 0].tolist() == [1, 2, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert warnings_logged[0] == "numbered: skipped unreadable image image-0.png: broken on purpose"
    assert warnings_logged[-1] == "numbered: skipped 7 unreadable images of 20"
    assert len(warnings_logged) == 6


def test_readable_data_is_not_logged(numbered_images, warnings_logged, capfd):
    materialize(numbered_images(20))
    assert warnings_logged == []
    assert capfd.readouterr() == ("", "")


def test_nothing_readable_is_an_error(numbered_images):
    with pytest.raises(UserError, match="numbered: none of its 3 images can be read"):
        materialize(numbered_images(3, broken=range(3)))


def test_defects_in_a_dataset_are_not_taken_for_unreadable_images(numbered_images):
    class Defective(numbered_images):
        def __getitem__(self, index):
            if index == 2:
                raise ZeroDivisionError
            return super().__getitem__(index)

    with pytest.raises(ZeroDivisionError):
        materialize(Defective(5))


def test_labels_of_readable_images_are_materialized(numbered_images):
    examples = materialize(numbered_images(13, broken=[2, 11], labelled=True))
    assert examples["label"].tolist() == (examples["image"][:, 0, 0, 0] % 10).tolist()
    assert len(examples["label"]) == 11


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": np.zeros((4, 4, 3))}, r"numbered: `image` must be uint8 .* got float64 of shape \(4, 4, 3\)"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"got uint8 of shape \(4, 4\)"),
        ({"image": [[1]]}, "got list"),
        ({"label": 0.5}, "numbered: `label` must be an integer scalar"),
        ({"label": np.zeros(2, int)}, "`label` must be an integer scalar"),
        ({"label": "cat"}, "`label` must be an integer scalar"),
        # Bug: what has no label was scored as one of the last class.
        (
            {"label": np.int32(-1)},
            r"`label` must be in \[0, 10\), the number of classes, got -1; use a split with labels",
        ),
        ({"label": np.int32(10)}, r"`label` must be in \[0, 10\), .* got 10"),
    ],
)
def test_examples_of_a_source_of_ones_own_are_checked(numbered_images, changed, message):
    class Wrong(numbered_images):
        def __getitem__(self, index):
            return super().__getitem__(index) | changed

    with pytest.raises(UserError, match=message):
        materialize(Wrong(5, labelled=True))


def test_examples_of_different_shapes_are_refused(numbered_images):
    """Bug: an image of one channel was repeated to fill the place of one of three."""

    class Mixed(numbered_images):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example if index != 3 else {"image": example["image"][..., :1]}

    with pytest.raises(UserError, match=r"numbered: `image` must have one shape .* got \(4, 4, 1\) in example 3"):
        materialize(Mixed(5))
