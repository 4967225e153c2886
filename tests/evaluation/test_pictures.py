"""Pictures of a benchmark: folders, archives, encoded columns; what is refused."""

import io
import stat
import zipfile

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from puma_trl.data.images import open_image
from puma_trl.errors import EvaluationError
from puma_trl.evaluation import pictures
from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.items import load_items

from .helpers import make_items, verse_item, vista_item, wemath_group, write_data


mathverse, mathvista, wemath = BENCHMARKS.values()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zip_folder(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            if file.suffix in (".png", ".jpg"):
                archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return path


def sizes(found):
    return [[open_image(picture).size for picture in pictures_of_item] for pictures_of_item in found]


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
@pytest.mark.parametrize("root", ["beside", "folder", "parent", "zip", "wrapped zip"])
def test_files_are_found(benchmark, root, tmp_path):
    folder = tmp_path / "published"
    data = write_data(folder, benchmark.name)
    items = load_items(benchmark, str(data), "testmini", benchmark.columns)
    image_root = {
        "beside": lambda: None,
        "folder": lambda: str(folder),
        "parent": lambda: str(tmp_path),
        "zip": lambda: str(zip_folder(folder, tmp_path / "images.zip")),
        "wrapped zip": lambda: str(zip_folder(folder, tmp_path / "images.zip", "testmini/")),
    }[root]()
    found = pictures.find_pictures(benchmark, items, str(data), "testmini", image_root)
    expected = [
        [] if item.get("problem_version") == "Text Only" else [(28 + 28 * (index % 3), 28)]
        for index, item in enumerate(make_items(benchmark.name))
    ]
    assert sizes(found) == expected


def test_root_may_be_the_first_folder_of_the_paths(tmp_path):
    data = write_data(tmp_path, "mathvista")
    items = load_items(mathvista, str(data), "testmini", mathvista.columns)
    found = pictures.find_pictures(mathvista, items, str(data), "testmini", str(tmp_path / "images"))
    assert all(len(one) == 1 for one in found)


def test_folder_of_another_version_is_no_match(tmp_path):
    """Every MathVerse version has an image_1.png: the folder in the path must agree."""
    data = write_data(tmp_path, "mathverse", [verse_item(1)])
    (tmp_path / "images_version_6").mkdir()
    (tmp_path / "images_version_1-4" / "image_1.png").rename(tmp_path / "images_version_6" / "image_1.png")
    items = load_items(mathverse, str(data), "testmini", mathverse.columns)
    with pytest.raises(EvaluationError, match="1 pictures of MathVerse.*item 1: images_version_1-4/image_1.png"):
        pictures.find_pictures(mathverse, items, str(data), "testmini", str(tmp_path / "images_version_6"))


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png"])
def test_path_that_leaves_the_folder_is_not_opened(name, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "root" / "a").mkdir(parents=True)
    items = [vista_item(1, image=name)]
    with pytest.raises(EvaluationError, match="secret.png"):
        pictures.find_pictures(mathvista, items, "x.json", "testmini", str(tmp_path / "root"))


def test_linked_pictures_are_found(tmp_path):
    """The cache of the Hub's library, and many a data folder, is made of links."""
    write_data(tmp_path / "blobs", "mathvista")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "blobs" / "images")
    found = pictures.find_pictures(mathvista, [vista_item(2)], "x.json", "testmini", str(tmp_path / "root"))
    assert sizes(found) == [[(56, 28)]]


def test_text_only_split_needs_no_archive(tmp_path):
    items = [verse_item(1, "Text Only"), verse_item(2, "Text Only", image=None)]
    found = pictures.find_pictures(mathverse, items, "items.json", "testmini_text_only", "hub")
    assert found == [[], []]


def test_encoded_column_of_a_parquet(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 5)).save(buffer, "PNG")
    rows = [item | {"image_path": {"bytes": buffer.getvalue(), "path": None}} for item in wemath_group(1, 2, 1)]
    rows[1]["image_path"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "items.parquet")
    items = load_items(wemath, str(tmp_path / "items.parquet"), "testmini", wemath.columns)
    assert "image_path" not in items[0]
    found = pictures.find_pictures(wemath, items, str(tmp_path / "items.parquet"), "testmini", None)
    assert sizes(found) == [[(9, 5)], [], [(9, 5)]]


@pytest.mark.parametrize("pictures_in", ["column", "archive"])
def test_copy_of_a_hub_data_set(pictures_in, tmp_path):
    """A folder with parquet files of the split, as the Hub has it, goes the way of a Hub data set."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    write_data(tmp_path / "published", "mathvista")
    rows = [item | {"decoded_image": str(tmp_path / "published" / item["image"])} for item in make_items("mathvista")]
    rows[3]["decoded_image"] = None
    dataset = Dataset.from_list(rows)
    folder = tmp_path / "copy"
    if pictures_in == "column":
        dataset = dataset.cast_column("decoded_image", ImageFeature())
    else:
        dataset = dataset.remove_columns("decoded_image")
        folder.mkdir()
        zip_folder(tmp_path / "published", folder / "images.zip")
    dataset.to_parquet(folder / "data" / "testmini-00000-of-00001.parquet")
    items = load_items(mathvista, str(folder), "testmini", mathvista.columns)
    assert [item["pid"] for item in items] == [row["pid"] for row in rows]
    assert "decoded_image" not in items[0] and items[1]["choices"] is None and items[1]["metadata"]["skills"]
    found = pictures.find_pictures(mathvista, items, str(folder), "testmini", None)
    expected = [[(28 + 28 * (index % 3), 28)] for index in range(len(rows))]
    if pictures_in == "column":
        expected[3] = []
    assert sizes(found) == expected
    with pytest.raises(EvaluationError, match="split test:"):
        load_items(mathvista, str(folder), "test", mathvista.columns)


def test_archive_is_extracted_once(tmp_path, cache):
    write_data(tmp_path / "published", "wemath")
    archive = zip_folder(tmp_path / "published", tmp_path / "testmini.zip")
    folder = pictures.extract_archive(archive)
    (folder / "mark").touch()
    assert pictures.extract_archive(archive) == folder and (folder / "mark").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half-done is left


def bad_archive(path, fault):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fine.png", b"x")
        if fault == "escape":
            archive.writestr("../outside.png", b"x")
        elif fault == "backslash":
            archive.writestr("..\\outside.png", b"x")
        elif fault == "absolute":
            archive.writestr("/outside.png", b"x")
        elif fault == "link":
            link = zipfile.ZipInfo("link.png")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/hostname")
        elif fault == "bomb":
            archive.writestr("bomb.png", bytes(10_000_000))
        elif fault == "damaged":
            archive.writestr("damaged.png", bytes(range(256)) * 40)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("escape", "would leave the folder"),
        ("backslash", "would leave the folder"),
        ("absolute", "would leave the folder"),
        ("link", "is a link"),
        ("bomb", "refused as too large"),
    ],
)
def test_dangerous_archives_are_refused(fault, message, tmp_path, cache):
    bad_archive(tmp_path / "bad.zip", fault)
    with pytest.raises(EvaluationError, match=message):
        pictures.extract_archive(tmp_path / "bad.zip")
    assert not list(cache.rglob("*.png")) and not list(tmp_path.parent.rglob("outside.png"))


@pytest.mark.parametrize("fault", ["half", "damaged"])
def test_torn_archive(fault, tmp_path, cache):
    content = b"PK\x03\x04 half a file"
    if fault == "damaged":
        bad_archive(tmp_path / "whole.zip", "damaged")
        content = bytearray((tmp_path / "whole.zip").read_bytes())
        start = content.index(b"damaged.png") + len(b"damaged.png")
        content[start : start + 40] = b"\xff" * 40
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(EvaluationError, match="no intact zip archive"):
        pictures.extract_archive(tmp_path / "images.zip")
    assert not list(cache.rglob("*.png"))


def test_member_of_no_name_is_the_folder_itself(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("./", b"")
        archive.writestr("./images/1.png", b"x")
    assert (pictures.extract_archive(tmp_path / "images.zip") / "images" / "1.png").read_bytes() == b"x"


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_FILES", 1)
    write_data(tmp_path / "published", "wemath")
    archive = zip_folder(tmp_path / "published", tmp_path / "testmini.zip")
    with pytest.raises(EvaluationError, match="10 files"):
        pictures.extract_archive(archive)


def test_missing_column_is_no_text_only_item(tmp_path):
    item = vista_item(1)
    del item["image"]
    with pytest.raises(EvaluationError, match="no column decoded_image or image"):
        pictures.find_pictures(mathvista, [item], "x.json", "testmini", str(tmp_path))


def test_root_that_does_not_exist(tmp_path):
    with pytest.raises(EvaluationError, match="nowhere does not exist"):
        pictures.find_pictures(mathvista, [vista_item(1)], "x.json", "testmini", str(tmp_path / "nowhere"))
