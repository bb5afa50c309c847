"""Any bytes become an upright RGB picture or an error that names their fault."""

from __future__ import annotations

import base64
import io
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from protoserve.errors import ImageError, InputError, OutOfMemoryError
from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import Limits, decode, decoding_cost
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from tests.protoserve.images.test_colour import DISPLAY_P3, expected, profile


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def photograph(width: int = 80, height: int = 60) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def pixels(source: Any) -> NDArray[np.uint8]:
    return np.asarray(decode(source).picture)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert (pixels(encode(photograph(), kind)) == np.asarray(photograph())).all()


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {})])
def test_lossy_formats_come_close(kind: str, options: dict[str, Any]) -> None:
    smooth = photograph().resize((80, 60), Image.Resampling.BICUBIC, box=(30, 30, 40, 40))
    difference = pixels(encode(smooth, kind, **options)).astype(int) - np.asarray(smooth)
    assert np.abs(difference).mean() < 6


def test_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = encode(first, kind, save_all=True, append_images=[second], **options)
        assert (pixels(data) == (255, 0, 0)).all(), kind


def test_grey_cmyk_palette_and_one_bit_become_rgb() -> None:
    assert (pixels(encode(Image.new("L", (4, 4), 77), "PNG")) == 77).all()
    assert (pixels(encode(Image.new("1", (4, 4), 1), "PNG")) == 255).all()
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert (pixels(encode(palette, "PNG")) == (10, 200, 30)).all()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(encode(cmyk, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3
    assert (pixels(encode(cmyk, "TIFF")) == (255, 0, 0)).all()


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    half.putpixel((0, 0), (200, 0, 0, 255))
    half.putpixel((1, 0), (200, 0, 0, 0))
    for kind in ("PNG", "TIFF"):
        found = pixels(encode(half, kind))
        assert found[0, 0].tolist() == [200, 0, 0]
        assert found[0, 1].tolist() == [255, 255, 255]
        assert found[2, 2].tolist() == [127, 127, 127]
    grey = pixels(encode(Image.new("LA", (4, 4), (0, 0)), "PNG"))
    assert (grey == 255).all()
    key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (pixels(encode(key, "PNG", transparency=(1, 2, 3))) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert (pixels(encode(palette, "PNG", transparency=bytes([255, 0]))) == 255).all()
    assert (pixels(encode(palette, "GIF", transparency=1)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], dtype=np.uint16)
    found = pixels(encode(Image.fromarray(values), kind))
    assert found[0, :, 0].tolist() == np.rint(values[0] / 257).astype(int).tolist()
    assert (found[..., 0] == found[..., 2]).all()


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    file = tmp_path / "no suffix"
    file.write_bytes(encode(photograph(), "PNG"))
    expected = np.asarray(photograph())
    data = file.read_bytes()
    for source in (file, str(file), data, memoryview(data), photograph(), expected):
        assert (pixels(source) == expected).all()
    assert (pixels(expected[:, :, 0]) == expected[:, :, :1]).all()


def test_a_pillow_image_is_turned_by_its_exif_and_not_changed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encode(photograph(), "JPEG", exif=exif))
    with Image.open(tmp_path / "a.jpg") as picture:
        decoded = decode(picture)
        assert (decoded.width, decoded.height) == (60, 80)
        assert picture.size == (80, 60)


# ---- hostile input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "unsupported_image"),
        (b"hello, I am a text", "unsupported_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image"),
        (b"%PDF-1.7 ...", "unsupported_image"),
        (b"\xff\xd8\xff\xe0", "broken_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "broken_image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "broken_image"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "unsupported_image"),
        (encode(Image.new("L", (4, 4)), "PPM"), "unsupported_image"),
    ],
)
def test_bytes_that_are_not_a_picture_are_refused_with_their_code(content: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(content)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(kind: str, kept: float) -> None:
    whole = encode(photograph(), kind)
    with pytest.raises(ImageError) as caught:
        decode(whole[: int(len(whole) * kept)])
    assert caught.value.code == "broken_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_no_damage_escapes_as_another_error(kind: str) -> None:
    dice = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(photograph(), kind, **({"exif": exif} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} else {}))
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 2, 20])):
            damaged[dice.randrange(dice.choice([40, len(damaged)]))] = dice.choice([0, 255, dice.randrange(256)])
        if dice.random() < 0.2:
            start = dice.randrange(len(damaged))
            del damaged[start : start + dice.randrange(1, 50)]
        try:
            assert isinstance(decode(bytes(damaged)), DecodedImage)
        except ImageError as error:
            assert error.code in {"broken_image", "unsupported_image", "image_too_large"}


def test_size_limits(tmp_path: Path) -> None:
    data = encode(photograph(), "PNG")
    for limits in (Limits(bytes=100), Limits(pixels=4799), Limits(side=79)):
        for source in (data, data if limits.bytes == 100 else photograph(), tmp_path / "a.png"):
            (tmp_path / "a.png").write_bytes(data)
            with pytest.raises(ImageError, match="allowed") as caught:
                decode(source, limits=limits)
            assert caught.value.code == "image_too_large"
    assert decode(data, limits=Limits(bytes=len(data), pixels=4800, side=80)).width == 80


def test_a_bomb_is_refused_on_its_header() -> None:
    # A BMP header that announces 40,000 × 40,000 pixels, with none behind it: decoding would need 4.8 GB.
    header = bytearray(encode(Image.new("RGB", (1, 1)), "BMP")[:54])
    header[18:26] = (40_000).to_bytes(4, "little") * 2
    with pytest.raises(ImageError) as caught:
        decode(bytes(header))
    assert caught.value.code == "image_too_large"
    header[18:26] = (9_000).to_bytes(4, "little") * 2  # 81 MP: Pillow itself would go on
    with pytest.raises(ImageError, match="9000 × 9000") as caught:
        decode(bytes(header), limits=Limits(pixels=50_000_000))
    assert caught.value.code == "image_too_large"


def test_paths_that_are_not_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jpg: no such image"):
        decode(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match="is a folder"):
        decode(tmp_path)
    with pytest.raises(InputError, match="can't read"):
        decode("a\0b.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match=r"text\.jpg is not a picture"):
        decode(tmp_path / "text.jpg")


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        7,
    ],
)
def test_other_objects_are_refused(source: Any) -> None:
    with pytest.raises(ImageError, match="not a picture") as caught:
        decode(source)
    assert caught.value.code == "unsupported_image"


def test_unreadable_metadata_neither_warns_nor_spoils_the_picture() -> None:
    data = encode(photograph(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).width == 80


def test_one_odd_tag_does_not_hide_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = encode(photograph(), "JPEG", exif=exif)
    # The maker becomes the height: Pillow reads a height that is text, but can't write it again.
    odd = data.replace(b"\x01\x0f\x00\x02", b"\x01\x01\x00\x02")
    with pytest.raises(struct.error), Image.open(io.BytesIO(odd)) as picture:
        ImageOps.exif_transpose(picture)
    assert (decode(odd).width, decode(odd).height) == (60, 80)


def test_small_jpegs_and_other_formats_are_never_reduced() -> None:
    rule = InputRule(height=64, width=64, resize="crop")
    picture = Image.effect_noise((255, 400), 90)
    for kind, size in (("JPEG", (255, 400)), ("PNG", (2000, 2000))):
        target = io.BytesIO()
        picture.resize(size).save(target, kind)
        assert decode(target.getvalue(), draft_for=rule).reduced == 1


# ---- colours and values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("greatest", "white"), [(4095, 4095), (900, 4095), (255, 255), (60, 255), (4096, 65_535)])
def test_twelve_and_eight_bits_in_sixteen_are_not_read_as_black(kind: str, greatest: int, white: int) -> None:
    values = np.linspace(0, greatest, 40).astype(np.uint16).reshape(4, 10)
    found = pixels(encode(Image.fromarray(values), kind))
    assert found[..., 0].tolist() == np.floor(values.astype(float) * 255 / white + 0.5).astype(int).tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_of_a_wide_profile_become_those_of_srgb(kind: str) -> None:
    lossless: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    colour = (200, 40, 60)
    data = encode(Image.new("RGB", (16, 16), colour), kind, icc_profile=profile(DISPLAY_P3), **lossless)
    wanted = expected(np.array([colour], dtype=float), DISPLAY_P3)[0]
    decoded = decode(data)
    assert np.abs(np.asarray(decoded.picture)[8, 8] - wanted).max() <= 3
    # The model sees the same colours.
    fitted = fit(decoded, InputRule(height=8, width=8, resize="stretch"))
    assert np.abs(fitted.array[4, 4] - wanted).max() <= 3


def test_profiles_of_srgb_grey_and_cmyk_change_no_pixel() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, icc in (("RGB", srgb), ("L", profile(DISPLAY_P3)), ("CMYK", profile(DISPLAY_P3))):
        picture = photograph().convert(mode)
        data, plain = encode(picture, "TIFF", icc_profile=icc), encode(picture, "TIFF")
        assert (pixels(data) == pixels(plain)).all(), mode


# ---- orientation --------------------------------------------------------------------------------------------


def xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
        % orientation
    )


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_an_orientation_that_only_xmp_states_is_ignored_as_in_browsers(kind: str) -> None:
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp(6).decode())
        data = encode(photograph(), kind, pnginfo=text)
    else:
        data = encode(photograph(), kind, xmp=xmp(6))
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.getexif()[0x0112] == 6
        assert decode(picture).width == 80
    assert (decode(data).width, decode(data).height) == (80, 60)
    if kind != "PNG":
        exif = Image.Exif()
        exif[0x0112] = 8
        assert decode(encode(photograph(), kind, xmp=xmp(1), exif=exif)).width == 60


# ---- large pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("limit", "reduced"), [(4800, 1), (4799, 2), (1200, 2), (1199, 4), (300, 4), (299, 8), (9, 8)])
def test_a_very_large_jpeg_is_reduced_and_keeps_its_size(
    limit: int, reduced: int, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protoserve.images.decoding.FULL_JPEG_PIXELS", limit)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(photograph(), "JPEG", exif=exif))
    sides = [-(-side // reduced) for side in ((80, 60) if orientation == 1 else (60, 80))]
    assert (decoded.reduced, list(decoded.picture.size)) == (reduced, sides)
    assert (decoded.width, decoded.height) == ((80, 60) if orientation == 1 else (60, 80))
    # A picture with several frames, as phones write them, is still a JPEG.
    assert decode(encode(photograph(), "MPO", save_all=True, append_images=[photograph()])).reduced == reduced


def test_other_formats_are_never_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoserve.images.decoding.FULL_JPEG_PIXELS", 9)
    assert decode(encode(photograph(), "PNG")).reduced == 1


def test_the_limits_of_local_data_hold_the_pictures_of_every_phone() -> None:
    assert Limits().pixels >= 200_000_000
    assert Limits().bytes >= 500_000_000


def test_memory_that_runs_out_is_not_the_senders_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(self: Image.Image) -> None:
        raise MemoryError

    data = encode(photograph(), "PNG")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", exhaust)
    with pytest.raises(OutOfMemoryError, match="more memory to decode than is free"):
        decode(data)


@pytest.mark.parametrize("make", [lambda: encode(photograph(), "TIFF", tiffinfo={274: 6}), lambda: photograph()])
def test_a_cost_is_told_without_decoding(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make()
    if isinstance(source, Image.Image):
        source = encode(source, "JPEG")
    monkeypatch.setattr("protoserve.images.decoding.importlib", None)
    cost = decoding_cost(source)
    assert cost.bounded and 80 * 60 * 4 < cost.memory < 10_000_000 and 0 < cost.seconds < 0.1
    with pytest.raises(ImageError) as caught:
        decoding_cost(source, limits=Limits(pixels=4799))
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (base64.b64encode(encode(photograph(), "JPEG")), "is the base64 text of a JPEG, not a picture as .*; send the"),
        (b"data:image/png;base64,iVBORw0KGgo=", "is the text of a data URL, not a picture as .*; send the decoded"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic", "is HEIC, not a picture as JPEG or PNG; convert it"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf", "is AVIF, not a picture as JPEG or PNG; convert it"),
        (encode(photograph(), "GIF"), "is GIF, not a picture as JPEG or PNG; convert it"),
    ],
)
def test_content_in_another_form_is_named_as_what_it_is(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        decode(content, formats=("JPEG", "PNG"))
    assert caught.value.code == "unsupported_image"


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_other_formats_that_pillow_reads_are_read(kind: str) -> None:
    smooth = Image.new("RGB", (40, 30), (200, 40, 60))
    assert np.abs(pixels(encode(smooth, kind)).astype(int) - (200, 40, 60)).max() <= 4


def test_heic_is_read_with_its_extra() -> None:
    heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 60))).save(stream)
    decoded = decode(stream.getvalue())
    assert (decoded.width, decoded.height) == (64, 48)
    assert np.abs(np.asarray(decoded.picture).astype(int) - (200, 40, 60)).max() <= 6
