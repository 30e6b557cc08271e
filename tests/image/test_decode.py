"""Every kind of image file, good and bad, and decoding at reduced scale."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import pil_loader

from mfm_image.data.decode import ImageReader, UnreadableImage, decode_image, jpeg_size, largest_reduction

RNG = np.random.default_rng(0)
COLOR = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
RAMP16 = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def rgb(path):
    """(h, w, 3) uint8 as decoded by us."""
    return decode_image(str(path)).permute(1, 2, 0).numpy()


def with_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to look at it"
    return exif


READABLE = {
    "rgb.jpg": lambda p: COLOR.save(p, quality=92),
    "progressive.jpg": lambda p: COLOR.save(p, quality=92, progressive=True),
    "grey.jpg": lambda p: COLOR.convert("L").save(p),
    "cmyk.jpg": lambda p: COLOR.convert("CMYK").save(p),
    "rotated.jpg": lambda p: COLOR.save(p, exif=with_orientation()),
    "palette.png": lambda p: COLOR.quantize(16).save(p),
    "palette_transparent.png": lambda p: COLOR.quantize(16).save(p, transparency=b"\x00\x80"),
    "alpha.png": lambda p: COLOR.convert("RGBA").save(p),
    "grey_alpha.png": lambda p: COLOR.convert("LA").save(p),
    "bilevel.png": lambda p: COLOR.convert("1").save(p),
    "image.bmp": lambda p: COLOR.save(p),
    "image.webp": lambda p: COLOR.save(p, lossless=True),
    "image.tif": lambda p: COLOR.save(p),
}


@pytest.mark.parametrize("name", READABLE)
def test_readable_files_give_the_pixels_of_torchvisions_image_folder(tmp_path, name):
    path = tmp_path / name
    READABLE[name](path)
    pixels = rgb(path)
    assert pixels.dtype == np.uint8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, on transparency
        assert np.array_equal(pixels, np.asarray(pil_loader(str(path))))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    for name in ("grey16.png", "grey16.tif"):
        Image.fromarray(RAMP16).save(tmp_path / name)
        pixels = rgb(tmp_path / name)
        assert np.array_equal(pixels[..., 0], np.round(RAMP16 / 257.0).astype(np.uint8))
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_extension_does_not_matter(tmp_path):
    (tmp_path / "jpeg.png").write_bytes(jpeg(COLOR))
    (tmp_path / "jpeg.jpg").write_bytes(jpeg(COLOR))
    assert np.array_equal(rgb(tmp_path / "jpeg.png"), rgb(tmp_path / "jpeg.jpg"))


UNREADABLE = {
    "zero_byte": (b"", "empty"),
    "text": (b"this is a text file that somebody called .jpg\n" * 20, "not an image"),
    "truncated_header": (jpeg(COLOR)[:100], "."),
    "truncated": (jpeg(COLOR)[: len(jpeg(COLOR)) // 2], "truncated"),
    "truncated_near_the_end": (jpeg(COLOR)[:-60], "truncated"),
    "truncated_progressive": (jpeg(COLOR, progressive=True)[:900], "truncated"),
    "truncated_grey": (jpeg(COLOR.convert("L"))[:-200], "truncated"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("reduction", [1, 2])
def test_unreadable_files_name_the_file_and_the_reason_in_one_line(tmp_path, name, reduction):
    content, reason = UNREADABLE[name]
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as error, ImageReader(str(path)) as image:
        image.decode(reduction)
    assert error.value.path == str(path) and error.value.reason and "\n" not in str(error.value)


def test_other_files_that_cannot_be_used(tmp_path):
    whole = tmp_path / "whole.png"
    COLOR.save(whole)
    (tmp_path / "truncated.png").write_bytes(whole.read_bytes()[:-200])
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "int32.tif")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    for name, reason in (("truncated.png", "."), ("int32.tif", "32-bit"), ("float.tif", "floating")):
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(str(tmp_path / name))
    with pytest.raises(UnreadableImage, match="No such file"):
        decode_image(str(tmp_path / "gone.jpg"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"c" * 300}, {"exif": with_orientation()}])
def test_size_of_a_jpeg_without_pil(monkeypatch, options):
    """At every length of a cut file: the size, or None, which leaves the file to PIL."""
    data = jpeg(COLOR, **options)
    told = [jpeg_size(data[:length]) for length in range(len(data))]
    assert set(told) == {None, (40, 48)} and told[-1] == (40, 48)
    # other precisions and numbers of colours, a height told later, a segment of length 0, garbage, bombs
    frame = next(i for i in range(2, len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    for place, value in ((4, 12), (6, 0), (9, 1), (9, 4)):
        changed = bytearray(data)
        changed[frame + place] = value
        assert jpeg_size(bytes(changed)) is None
    assert jpeg_size(data[:2] + b"\xff\xe0\0\0" + data[2:]) is None
    assert jpeg_size(data[:2] + b"\0" + data[2:]) is None and jpeg_size(b"\0" + data) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 - 1)
    assert jpeg_size(data) is None


@pytest.mark.parametrize("image", [COLOR.convert("L"), COLOR.convert("CMYK")])
def test_other_colours_of_a_jpeg_are_left_to_pil(image):
    assert jpeg_size(jpeg(image)) is None


def test_decoded_pixels_can_be_written_to(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(COLOR))
    for reduction in (1, 2):
        with ImageReader(str(tmp_path / "a.jpg")) as image:
            image.decode(reduction).add_(1)


def test_largest_reduction_keeps_the_crop_as_large_as_the_output():
    assert largest_reduction(448, 448, 224, 224) == 2
    assert largest_reduction(447, 448, 224, 224) == 1
    assert largest_reduction(448, 447, 224, 224) == 1
    assert largest_reduction(10_000, 895, 224, 224) == 2
    assert largest_reduction(1792, 1792, 224, 224) == 8
    assert largest_reduction(100, 100, 224, 224) == 1


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(640, 480), (643, 477), (17, 9)])
def test_reduced_decoding_is_the_image_at_that_scale(tmp_path, reduction, size):
    full = COLOR.resize(size, Image.Resampling.BICUBIC)
    (tmp_path / "a.jpg").write_bytes(jpeg(full))
    with ImageReader(str(tmp_path / "a.jpg")) as image:
        reduced = image.decode(reduction)
    expected_size = [-(-side // reduction) for side in size[::-1]]
    assert list(reduced.shape) == [3, *expected_size]
    if min(size) > 100:
        reference = np.asarray(full.reduce(reduction), dtype=np.float32)
        difference = np.abs(reduced.permute(1, 2, 0).numpy() - reference)
        assert difference.mean() < 1.5 and difference.max() < 25


def test_a_png_and_an_image_smaller_than_the_reduction_are_not_reduced_beyond_themselves(tmp_path):
    COLOR.save(tmp_path / "a.png")
    Image.new("RGB", (3, 1)).save(tmp_path / "b.jpg")
    for name, size in (("a.png", (40, 48)), ("b.jpg", (1, 3))):
        with ImageReader(str(tmp_path / name)) as image:
            assert image.decode(8).shape[1:] == size
