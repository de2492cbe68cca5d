"""Folders of images."""

import numpy as np
import pytest
import torch
from data_files import write_images
from PIL import Image

from archipel.core.errors import DataError, UsageError
from archipel.data import load


def test_class_folders_become_classes_and_pixels_survive(tmp_path):
    data = load(write_images(tmp_path / "pets", classes=3), normalise=False)
    assert data.input_shape == (3, 5, 4)
    assert data.info["class_names"] == ["class0", "class1", "class2"]
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (10, 4, 4)
    corner = (data.train.x[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(corner // 20, data.train.y)
    file = np.array(Image.open(tmp_path / "pets" / "class0" / f"{int(corner[0])}.png"))
    torch.testing.assert_close(data.train.x[0], torch.from_numpy(file).permute(2, 0, 1) / 255)


def test_images_are_resized_and_converted_when_asked(tmp_path):
    write_images(tmp_path, mode="L")
    write_images(tmp_path / "class0" / "more", classes=1, size=(9, 9))
    assert load(tmp_path, size="8x6", color="rgb").input_shape == (3, 8, 6)
    assert load(f"{tmp_path}?size=7&color=grey").input_shape == (1, 7, 7)


def test_train_and_test_folders_are_kept_as_published(tmp_path):
    write_images(tmp_path / "train", each=10)
    write_images(tmp_path / "test", each=3)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (16, 4, 6)
    assert data.info["split"]["rule"] == "published test; val drawn, stratified, by seed"
    write_images(tmp_path / "val", each=4)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (20, 8, 6)


def test_other_files_are_passed_over_and_counted(tmp_path):
    write_images(tmp_path)
    (tmp_path / "class0" / "notes.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    assert load(tmp_path).info["ignored"] == 1


def test_palettes_and_transparency_are_read(tmp_path):
    folder = write_images(tmp_path / "a")
    palette = folder / "class1" / "0.png"
    Image.open(palette).convert("P").save(palette)
    assert load(folder).input_shape == (3, 5, 4)
    assert load(write_images(tmp_path / "b", mode="RGBA")).input_shape == (4, 5, 4)


def test_an_unreadable_image_is_named(tmp_path):
    broken = write_images(tmp_path) / "class1" / "2.png"
    for content in (b"not an image", broken.read_bytes()[:-30], b""):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"class1/2\.png: not a readable image"):
            load(tmp_path)


def test_different_channels_and_sizes_name_both_files_and_the_way_out(tmp_path):
    odd = write_images(tmp_path / "a") / "class1" / "3.png"
    Image.open(odd).convert("L").save(odd)
    with pytest.raises(DataError, match=r"class1/3\.png: has 1 channels, but .*class0/0\.png has 3.*color=rgb"):
        load(tmp_path / "a")
    odd = write_images(tmp_path / "b") / "class1" / "3.png"
    Image.open(odd).resize((9, 8)).save(odd)
    with pytest.raises(DataError, match=r"class1/3\.png: is 8 x 9 .*class0/0\.png is 5 x 4.*size=4"):
        load(tmp_path / "b")


def test_sixteen_bit_images_are_refused_rather_than_cut(tmp_path):
    deep = write_images(tmp_path, mode="L") / "class1" / "3.png"
    Image.fromarray(np.full((5, 4), 60000, np.uint16)).save(deep)
    with pytest.raises(DataError, match=r"class1/3\.png: pixels of kind 'I;16' are not read"):
        load(tmp_path)


def test_a_single_class_an_unknown_test_class_and_no_images_are_errors(tmp_path):
    with pytest.raises(DataError, match="all 6 examples are of one class"):
        load(write_images(tmp_path / "one", classes=1))
    write_images(tmp_path / "two" / "train")
    write_images(tmp_path / "two" / "test", classes=3)
    with pytest.raises(DataError, match="class 'class2' does not occur among the training examples"):
        load(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="it has nothing"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="no images in class subfolders"):
        load(tmp_path / "none", kind="images")


@pytest.mark.parametrize("options", [{"size": "big"}, {"size": 0}, {"size": "1x2x3"}, {"color": "blue"}])
def test_wrong_options_are_explained(tmp_path, options):
    with pytest.raises(UsageError, match="must be"):
        load(write_images(tmp_path), **options)
