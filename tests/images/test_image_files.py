"""Read images of every mode, write them atomically, and draw overlays, legends and grids."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from kseg.errors import DataError, UserError
from kseg.images import drawing, image_files

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def saved_and_read(path, image, **options):
    image.save(path, **options)
    return image_files.read_image(path).tolist()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp"])
def test_lossless_rgb_is_read_exactly(tmp_path, suffix):
    image = Image.new("RGB", (3, 2), BLUE)
    image.putpixel((2, 0), RED)
    options = {"lossless": True} if suffix == "webp" else {}
    expected = [[list(BLUE), list(BLUE), list(RED)], [list(BLUE)] * 3]
    assert saved_and_read(tmp_path / f"a.{suffix}", image, **options) == expected
    assert image_files.read_image(tmp_path / f"a.{suffix}").dtype == np.uint8


def test_array_is_writable(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    assert image_files.read_image(tmp_path / "a.png").flags.writeable


def test_gray_and_bilevel(tmp_path):
    assert saved_and_read(tmp_path / "gray.png", Image.new("L", (1, 1), 77)) == [[[77, 77, 77]]]
    assert saved_and_read(tmp_path / "bit.png", Image.new("1", (1, 1), 1)) == [[[255, 255, 255]]]


def test_alpha_is_dropped_not_composited(tmp_path):
    assert saved_and_read(tmp_path / "rgba.png", Image.new("RGBA", (1, 1), (10, 20, 30, 0))) == [[[10, 20, 30]]]
    assert saved_and_read(tmp_path / "la.png", Image.new("LA", (1, 1), (90, 0))) == [[[90, 90, 90]]]


@pytest.mark.parametrize("transparency", [None, 1, b"\x80\x00"])
def test_palette_colors_are_read_even_if_transparent(tmp_path, recwarn, transparency):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([1, 2, 3, 40, 50, 60])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    assert saved_and_read(tmp_path / "a.png", image, **options) == [[[1, 2, 3], [40, 50, 60]]]
    assert not recwarn.list


def test_cmyk(tmp_path):
    # Pure cyan removes all red; half black halves white.
    assert saved_and_read(tmp_path / "cyan.tif", Image.new("CMYK", (1, 1), (255, 0, 0, 0))) == [[[0, 255, 255]]]
    assert saved_and_read(tmp_path / "black.tif", Image.new("CMYK", (1, 1), (0, 0, 0, 128))) == [[[127, 127, 127]]]
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    image.save(tmp_path / "cyan.jpg", quality=100)
    assert np.abs(image_files.read_image(tmp_path / "cyan.jpg").astype(int) - (0, 255, 255)).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_rounded_to_8_bits(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 65535, 32896]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    read = image_files.read_image(tmp_path / f"a.{suffix}")
    assert read.shape == (1, 6, 3)
    assert read[0, :, 0].tolist() == [0, 0, 1, 1, 255, 128]
    assert (read == read[..., :1]).all()


def test_32_bit_gray_is_accepted_only_within_16_bits(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(path)
    assert image_files.read_image(path).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    for values in ([[0, 65536]], [[-1, 5]]):
        Image.fromarray(np.array(values, np.int32)).save(path)
        with pytest.raises(DataError, match=rf"a\.tif: gray values {values[0][0]}\.\.{values[0][1]}"):
            image_files.read_image(path)


def test_floating_point_is_rejected(tmp_path):
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: floating-point"):
        image_files.read_image(tmp_path / "a.tif")


# The quarters of the file that become the upper left (red) and upper right (green) quarter of the upright image, by the
# EXIF standard. Orientation 6, "row 0 is the right side, column 0 the top", is a phone held upright.
@pytest.mark.parametrize(
    "orientation, red, green",
    [
        (1, (0, 0), (0, 1)),
        (2, (0, 1), (0, 0)),
        (3, (1, 1), (1, 0)),
        (4, (1, 0), (1, 1)),
        (5, (0, 0), (1, 0)),
        (6, (1, 0), (0, 0)),
        (7, (1, 1), (0, 1)),
        (8, (0, 1), (1, 1)),
        (9, (0, 0), (0, 1)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation, red, green):
    turned = orientation in (5, 6, 7, 8)
    quarter = (16, 32) if turned else (32, 16)
    array = np.zeros((quarter[0] * 2, quarter[1] * 2, 3), np.uint8)
    for (row, column), value in ((red, RED), (green, GREEN)):
        array[row * quarter[0] : (row + 1) * quarter[0], column * quarter[1] : (column + 1) * quarter[1]] = value
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(array).save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    read = image_files.read_image(path).astype(int)
    assert read.shape == (64, 32, 3)
    for position, value in (((16, 8), RED), ((16, 24), GREEN), ((48, 8), BLACK), ((48, 24), BLACK)):
        assert np.abs(read[position] - value).max() < 12


def test_only_first_frame_of_animation_is_read(tmp_path):
    later = Image.new("RGB", (2, 2), BLUE)
    Image.new("RGB", (2, 2), RED).save(tmp_path / "a.gif", save_all=True, append_images=[later])
    assert image_files.read_image(tmp_path / "a.gif")[0, 0].tolist() == list(RED)


# Pillow warns about damaged headers.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9])
def test_truncated_files_are_rejected(tmp_path, suffix, fraction):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: \S"):
        image_files.read_image(path)


def test_files_that_are_no_images_are_rejected(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    for name, reason in (
        ("empty.png", "not an image"),
        ("text.jpg", "not an image"),
        ("gone.png", "No such file"),
        (".", "directory"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            image_files.read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_content_raises_only_data_errors(tmp_path):
    random = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for suffix in ("png", "tiff", "gif", "webp", "bmp", "jpeg"):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path, format=suffix)
        content = path.read_bytes()
        for _ in range(40):
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[random.integers(0, min(len(damaged), 200), 4)] = random.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                assert image_files.read_image(path).ndim == 3
            except DataError as error:
                assert str(path) in str(error)


def png_header(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
def test_size_limit_is_200_megapixels(tmp_path):
    path = tmp_path / "large.png"
    # The files have no pixels, so nothing large is decoded: the first fails as truncated, not as too large.
    path.write_bytes(png_header(20_000, 10_000))
    with pytest.raises(DataError, match="truncated"):
        image_files.read_image(path)
    path.write_bytes(png_header(20_000, 10_001))
    with pytest.raises(DataError, match=r"large\.png: .*200020000"):
        image_files.read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, pixels", [(20_001, 300_015_000), (100_000, 1_500_000_000)])
def test_decompression_bombs_are_rejected_with_their_pixel_count(tmp_path, width, pixels):
    (tmp_path / "bomb.png").write_bytes(png_header(width, 15_000))
    with pytest.raises(DataError, match=rf"bomb\.png: .*{pixels}"):
        image_files.read_image(tmp_path / "bomb.png")


def test_colorize_by_hand():
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    # Id 2 is beyond the palette.
    assert drawing.colorize(ids, (RED, WHITE)).tolist() == [[list(RED), list(WHITE)], [[0, 0, 0], [0, 0, 0]]]
    assert drawing.colorize(ids, (RED, WHITE)).dtype == np.uint8
    assert not drawing.colorize(ids, ()).any()
    # Id 255 stays black even if the palette is long enough.
    assert drawing.colorize(np.array([[254, 255]], np.uint8), [WHITE] * 256).tolist() == [[list(WHITE), [0, 0, 0]]]
    with pytest.raises(ValueError, match="int64"):
        drawing.colorize(ids.astype(np.int64), (RED,))


def test_overlay_by_hand():
    image = np.array([[[100, 100, 100], [10, 20, 30]], [[7, 8, 9], [40, 50, 60]]], np.uint8)
    ids = np.array([[0, 1], [255, 2]], np.uint8)
    palette = ((200, 0, 50), BLACK)
    # 10 and 30 halve to 5 and 15: a black class darkens, while 255 and 2 have no class and keep the image.
    assert drawing.overlay(image, ids, palette).tolist() == [[[150, 50, 75], [5, 10, 15]], [[7, 8, 9], [40, 50, 60]]]
    # 100 + 0.3 * (200 - 100) = 130, 100 - 30 = 70, 100 - 15 = 85; 0.7 of 10, 20, 30.
    assert drawing.overlay(image, ids, palette, 0.3)[0].tolist() == [[130, 70, 85], [7, 14, 21]]
    assert (drawing.overlay(image, ids, palette, 0) == image).all()
    assert drawing.overlay(image, ids, palette, 1)[0].tolist() == [[200, 0, 50], [0, 0, 0]]
    assert image[0, 0].tolist() == [100, 100, 100]


def test_overlay_rejects_wrong_shapes_and_opacity():
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(3, 2, 3\)"):
        drawing.overlay(image, np.zeros((3, 2), np.uint8), (RED,))
    with pytest.raises(ValueError, match="1.5"):
        drawing.overlay(image, np.zeros((2, 3), np.uint8), (RED,), 1.5)


def test_legend_has_every_color_and_adds_columns():
    palette = [(index, 255 - index, 128) for index in range(150)]
    sheet = np.array(drawing.legend([f"class number {index}" for index in range(150)], palette))
    drawn = {tuple(pixel) for pixel in np.unique(sheet.reshape(-1, 3), axis=0).tolist()}
    assert set(palette) <= drawn
    assert sheet.shape[0] < 800
    small = drawing.legend(("sky", "road"), (RED, WHITE))
    assert small.mode == "RGB" and small.height < 100
    with pytest.raises(ValueError, match="2 classes and 1 "):
        drawing.legend(("sky", "road"), (RED,))


def test_long_names_fit_in_the_legend():
    narrow, wide = (np.array(drawing.legend((name, "b"), (RED, BLUE))) for name in ("a", "a" * 60))
    assert wide.shape[1] > narrow.shape[1] + 300
    assert (wide[:, -drawing.MARGIN // 2 :] == 255).all()


def test_grid_by_hand():
    large, small = np.full((20, 30, 3), RED, np.uint8), np.full((10, 12, 3), BLUE, np.uint8)
    sheet = np.array(drawing.grid([[large, small], [small]]))
    # The columns are 30 and 12 wide, the rows 20 and 10 high, and every gap has 4 pixels.
    assert sheet.shape == (4 + 20 + 4 + 10 + 4, 4 + 30 + 4 + 12 + 4, 3)
    assert (sheet[4:24, 4:34] == RED).all()
    assert (sheet[4:14, 38:50] == BLUE).all() and (sheet[28:38, 4:16] == BLUE).all()
    assert (sheet == WHITE).all(axis=2).sum() == sheet.shape[0] * sheet.shape[1] - 20 * 30 - 2 * 10 * 12


def test_grid_titles_are_above_and_widen_their_column():
    cell = np.full((20, 20, 3), BLUE, np.uint8)
    sheet = np.array(drawing.grid([[cell, cell]], ("image", "a title wider than its cell")))
    top, left = np.argwhere((sheet == BLUE).all(axis=2))[0]
    assert top > drawing.FONT_SIZE and left == 4 and sheet.shape[1] > 150
    assert (sheet[:top] < 128).any() and (sheet[:, -4:] == 255).all()


def test_grid_rejects_wrong_cells_and_titles():
    cell = np.zeros((2, 2, 3), np.uint8)
    for rows, titles, reason in (
        ([[cell]], ("a", "b"), "2 titles for 1 columns"),
        ([], (), "one cell"),
        ([[]], (), "one cell"),
        ([[cell[..., 0]]], (), r"\(2, 2\)"),
        ([[cell / 255]], (), "float64"),
    ):
        with pytest.raises(ValueError, match=reason):
            drawing.grid(rows, titles)


def test_save_writes_png_of_arrays_and_images(tmp_path):
    path = tmp_path / "new directory" / "a.png"
    ids = np.array([[0, 255, 3]], np.uint8)
    image_files.save_image(ids, path)
    with Image.open(path) as image:
        assert (image.format, image.mode, np.array(image).tolist()) == ("PNG", "L", [[0, 255, 3]])
    image_files.save_image(Image.new("RGB", (2, 2), RED), path)
    assert image_files.read_image(path)[1, 1].tolist() == list(RED)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="int64"):
        image_files.save_image(ids.astype(np.int64), path)


def test_failed_save_keeps_the_old_file_and_leaves_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    image_files.save_image(np.full((1, 1), 9, np.uint8), path)

    def full_disk(image, target, format):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*a\.png: No space left"):
        image_files.save_image(np.zeros((1, 1), np.uint8), path)
    assert image_files.read_image(path).tolist() == [[[9, 9, 9]]]
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_reading_images_needs_no_tensorflow():
    program = "import sys, kseg.images.image_files; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_legends_have_a_font_for_most_alphabets():
    assert not drawing.missing_characters(["Straße", "дорога", "δρόμος", "road"])
    assert drawing.missing_characters(["road", "道路"]) == "路道"
    # A missing character is drawn as a box, the same for all of them.
    font = drawing.font_for("ж")
    assert bytes(font.getmask("ж")) != bytes(font.getmask("道")) == bytes(font.getmask("路"))
    assert drawing.legend(["дорога"], [(1, 2, 3)]).size != drawing.legend(["road"], [(1, 2, 3)]).size
