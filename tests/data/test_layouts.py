"""Public datasets as they lie on disk: which images, masks and groups are seen in each."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wsdl_data import build
from wsdl_data.manifest.layouts import LAYOUTS
from wsdl_data.own.masks import Manipulated

FOLDERS = {
    # files; image → columns of the fakes; image → columns of the real images
    "autosplice": (
        ["Mask/12_mask.png", "Caption/12.json"],
        {
            f"Forged_JPEG{quality}/12_{number}.jpg": {
                "mask": "Mask/12_mask.png",
                "group": "12",
                "generator": "dall-e-2",
            }
            for quality in (75, 90, 100)
            for number in (0, 1)
        },
        {"Authentic/12.jpg": {"group": "12"}},
    ),
    "br_gen_val": (
        ["Gt/MAT_Stuff_COCO_00000000520_mask.png"],
        {
            "Tp/MAT_Stuff_COCO_00000000520.png": {
                "mask": "Gt/MAT_Stuff_COCO_00000000520_mask.png",
                "group": "COCO_00000000520",
                "generator": "MAT",
            }
        },
        {"Au/COCO_00000000520.png": {"group": "COCO_00000000520"}},
    ),
    "coco_glide": (
        ["mask/stop sign_724_mask.png", "table.csv", "licenses.json"],
        {
            "fake/glide_inpainting_val2017_724_up.png": {
                "mask": "mask/stop sign_724_mask.png",
                "group": "724",
                "generator": "glide",
                "kind": "spliced",
            }
        },
        {"real/stop sign_724.png": {"group": "724"}},
    ),
    "columbia": (
        ["4cam_splc/edgemask/canong3_nikond70_sub_01_edgemask.jpg", "README.txt"],
        {
            "4cam_splc/canong3_nikond70_sub_01.tif": {
                "mask": "4cam_splc/edgemask/canong3_nikond70_sub_01_edgemask.jpg",
                "kind": "spliced",
                "split": "test",
            }
        },
        {"4cam_auth/canong3_02_sub_01.tif": {"split": "test"}},
    ),
    "imd2020": (
        ["1bl55t/c97qv4m_0_mask.png", "z28/00065_fake_mask.png"],
        {
            "1bl55t/c97qv4m_0.jpg": {"mask": "1bl55t/c97qv4m_0_mask.png", "group": "1bl55t"},
            "z28/00065_fake.jpg": {"mask": "z28/00065_fake_mask.png", "group": "z28"},
        },
        {"1bl55t/1bl55t_orig.jpg": {"group": "1bl55t"}, "z28/00065_orig.jpg": {"group": "z28"}},
    ),
    "tgif": (
        [
            "masks/training/stop sign/42_mask_bbox.png_ps_mask.png",
            "masks/training/stop sign/42_mask_bbox.png",
            "masks/training/stop sign/42_mask_512.png",
            "masks/training/stop sign/42_mask_bbox_512.png",
            "masks/testing/cat/7_mask_segm_1024.png",
            "masks/testing/cat/7_mask_segm.png_ps_mask.png",
            "orig/training/stop sign/42_orig_512.png",
        ],
        {
            f"{folder}/{split}/{name}": {
                "mask": f"masks/{split}/{mask}",
                "group": name.split("/")[1].split("_")[0],
                "generator": generator,
                "kind": kind,
                "split": split,
            }
            for folder, split, name, mask, generator, kind in (
                (
                    *("sd2-sp", "training", "stop sign/42_mask_bbox.png_ps_mask.png_sd2_0.png"),
                    *("stop sign/42_mask_bbox.png_ps_mask.png", "sd2", "spliced"),
                ),
                (
                    *("sd2-fr", "training", "stop sign/42_mask_bbox.png_sd2-512_2.png"),
                    *("stop sign/42_mask_bbox_512.png", "sd2", "regenerated"),
                ),
                (
                    *("ps-sp", "testing", "cat/7_mask_segm.png_ps_1.png"),
                    *("cat/7_mask_segm.png_ps_mask.png", "firefly", "spliced"),
                ),
                (
                    *("sdxl-fr", "testing", "cat/7_mask_segm.png_sdxl-1024_1.png"),
                    *("cat/7_mask_segm_1024.png", "sdxl", "regenerated"),
                ),
            )
        },
        {
            "orig/training/stop sign/42_orig.png": {"group": "42", "split": "training"},
            "orig/testing/cat/7_orig.png": {"group": "7", "split": "testing"},
        },
    ),
}


def touch(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize("layout", FOLDERS)
def test_folders(layout: str, tmp_path: Path) -> None:
    others, fakes, real = FOLDERS[layout]
    touch(tmp_path, [*others, *fakes, *real])
    found = {row.texts["image"]: dict(row.texts) for row in LAYOUTS[layout].read(tmp_path)}
    expected = {name: {"image": name, "label": "fake", **more} for name, more in fakes.items()}
    expected |= {name: {"image": name, "label": "real", **more} for name, more in real.items()}
    assert found == expected


def test_a_fake_without_its_mask_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others, fakes, real = FOLDERS["imd2020"]
    touch(tmp_path, [*others[1:], *fakes, *real])
    found = [row.texts["image"] for row in LAYOUTS["imd2020"].read(tmp_path)]
    assert "1bl55t/c97qv4m_0.jpg" not in found and "z28/00065_fake.jpg" in found
    assert f"{tmp_path}: 1 fakes without a mask are left out, the first 1bl55t/" in caplog.text


def test_endings_in_capitals_and_linked_folders(tmp_path: Path) -> None:
    others, fakes, _ = FOLDERS["imd2020"]
    touch(tmp_path, [*others, *fakes, "1bl55t/1bl55t_orig.JPG"])
    found = [row.texts["image"] for row in LAYOUTS["imd2020"].read(tmp_path)]
    assert "1bl55t/1bl55t_orig.JPG" in found
    (tmp_path / "more").symlink_to(tmp_path / "z28")
    with pytest.raises(ValueError, match="more: a link to a folder, which is not followed"):
        list(LAYOUTS["imd2020"].read(tmp_path))


def test_casia_groups_are_connected(tmp_path: Path) -> None:
    tampered = {
        "Tp_D_CND_M_N_ani00018_sec00096_00138.tif": "Au_ani_00018.jpg",
        "Tp_D_CNN_M_N_sec00096_nat00042_02437.jpg": "Au_nat_00042.jpg",
        "Tp_S_NRN_S_N_pla00020_pla00020_00001.tif": "Au_pla_00020.bmp",
    }
    masks = [f"CASIA 2 Groundtruth/{Path(name).stem}_gt.png" for name in tampered]
    touch(tmp_path, masks)
    touch(tmp_path / "CASIA 2.0/Tp", tampered)
    touch(tmp_path / "CASIA 2.0/Au", [*tampered.values(), "Au_arc_00001.jpg"])
    found = list(LAYOUTS["casia2"].read(tmp_path))
    groups = {Path(row.texts["image"]).name: row.texts["group"] for row in found}
    first, second, third = tampered
    # The first two share sec00096.
    one = {groups[name] for name in (first, second, tampered[first], tampered[second])}
    assert len(one) == 1
    assert groups[third] == groups[tampered[third]] not in one
    assert len({*groups.values()}) == 3
    assert {row.texts["mask"] for row in found if row.texts["label"] == "fake"} == {*masks}


def test_fantastic_reality(tmp_path: Path) -> None:
    fakes = ("IMG_0015571_IMG_0005567", "IMG_0005567_IMG_0000002", "IMG_3_IMG_4")
    touch(tmp_path / "dataset/ColorFakeImages", [f"{name}.jpg" for name in fakes])
    touch(tmp_path / "dataset/ColorRealImages", ["IMG_3.jpg"])
    folder = tmp_path / "dataset/SegmentationFake"
    folder.mkdir()
    regions = np.array([[0, 0, 3], [0, 7, 0]], np.uint8)
    for name in fakes:
        np.savez(folder / f"{name}.npz", regions[..., None])
    found = list(LAYOUTS["fantastic_reality"].read(tmp_path))
    groups = {Path(row.texts["image"]).stem: row.texts["group"] for row in found}
    assert groups[fakes[0]] == groups[fakes[1]] != groups[fakes[2]] == groups["IMG_3"]
    manipulated = Manipulated(LAYOUTS["fantastic_reality"].manipulated)
    masks = [tmp_path / row.texts["mask"] for row in found if row.texts["label"] == "fake"]
    for mask in masks:
        np.testing.assert_array_equal(manipulated.read(mask), regions > 0)
    assert len(masks) == 3


def test_sagi_d(tmp_path: Path) -> None:
    head = ["img_path", "mask_path", "src_path", "split", "type", "inpainting_model"]
    rows = [
        ["sagid/test/coco/b/1.jpg", "sagid/test/coco/m/1.png", "sagid/a/1.jpg", "val", "sp", "x"],
        ["sagid\\test\\2.jpg", "sagid\\m\\2.png", "sagid\\a\\1.jpg", "val", "fr", "y"],
    ]
    with (tmp_path / "sagid.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "diffusion_model"], *([*row, "sd"] for row in rows)])
    found = [dict(row.texts) for row in LAYOUTS["sagi_d"].read(tmp_path)]
    known = {"group": "a/1.jpg", "split": "val"}
    assert found == [
        {"image": "a/1.jpg", "label": "real", **known},
        {
            **{"image": "test/coco/b/1.jpg", "label": "fake", "mask": "test/coco/m/1.png"},
            **{**known, "generator": "x+sd", "kind": "spliced"},
        },
        {
            **{"image": "test/2.jpg", "label": "fake", "mask": "m/2.png"},
            **{**known, "generator": "y+sd", "kind": "regenerated"},
        },
    ]
    (tmp_path / "sagid.csv").write_text("img_path,mask_path\n")
    with pytest.raises(ValueError, match=r"sagid\.csv: no column 'src_path'"):
        list(LAYOUTS["sagi_d"].read(tmp_path))


def encoded(values: np.ndarray) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.mark.parametrize("layout", ["open_sdi", "sid_set"])
def test_parquet_files(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, count = np.random.default_rng(0), 60
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    region = np.zeros((8, 8), np.uint8)
    region[2:5] = 255
    made = []
    for number, image in enumerate(images):
        sort = number % 3  # real, whole, partial
        mask = encoded(region) if sort == 2 else None
        row = {"image": encoded(image), "mask": mask}
        if layout == "sid_set":
            made.append({"img_id": f"id{number}", **row, "width": 8, "height": 8, "label": sort})
        else:
            part = "partial" if sort != 1 else "entire"
            key = f"{part}/sd15/{'real' if not sort else 'fake'}/{number // 3:09}.png"
            made.append({"key": key, **row, "label": min(sort, 1)})
    for number in range(2):
        part = made[number * count // 2 : (number + 1) * count // 2]
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"train-{number}.parquet")
    where = ["--images", os.fspath(tmp_path), "--data_dir", f"{tmp_path}/data"]
    command = ["manifest/own", "--layout", layout, *where]
    if LAYOUTS[layout].manipulated is None:
        assert build.main(command) == 1
        assert "say what is manipulated in masks" in capsys.readouterr().err
        command += ["--manipulated", "white"]
    assert build.main(command) == 0
    found = {}
    for kind in ("real", "fake"):
        builder = build.make_builder(f"manifest/own_{kind}", f"{tmp_path}/data")
        for split in builder.info.splits:
            for example in builder.as_data_source(split):
                found[int(example["key"].decode().removeprefix("row ")) - 1] = example
    assert sorted(found) == list(range(count))
    for number, example in found.items():
        np.testing.assert_array_equal(example["image"], images[number])
        sort = number % 3
        assert example["label"] == min(sort, 1)
        assert example["kind"] == (b"full" if sort == 1 else b"")
        if sort:
            expected = region if sort == 2 else np.full_like(region, 255)
            np.testing.assert_array_equal(example["mask"][..., 0], expected)
        own = f"id{number}" if layout == "sid_set" else f"{number // 3:09}"
        assert example["group"].decode() == own
        generator = b"sd15" if layout == "open_sdi" and sort else b""
        assert example["generator"] == generator
    check = ["manifest/own", "--check", *where[2:]]
    assert build.main(check) == 0
    made[1]["image"] = encoded(rng.integers(0, 256, (8, 8, 3), np.uint8))
    pq.write_table(pa.Table.from_pylist(made[: count // 2]), tmp_path / "train-0.parquet")
    (said,) = build.changed_sources(["manifest/own_real", "manifest/own_fake"], where[3])
    assert "(1 changed; first train-0.parquet)" in said
    capsys.readouterr()
    assert build.main(check) == 1
    assert capsys.readouterr().out == "manifest/own: changed: row 2 (image)\n"


def test_what_is_not_of_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--images", os.fspath(tmp_path), "--data_dir", f"{tmp_path}/data"]
    assert build.main(["manifest/own", "--layout", "tgif", *where]) == 1
    assert f"{tmp_path}: no rows in it" in capsys.readouterr().err
    pq.write_table(pa.table({"key": ["a/b"], "label": [1]}), tmp_path / "a.parquet")
    assert build.main(["manifest/own", "--layout", "open_sdi", *where]) == 1
    assert "a.parquet, row 1 of a.parquet: key 'a/b' is not partial" in capsys.readouterr().err
    for wrong, message in (("tgif3", "no layout 'tgif3'; choose from autosplice, "),):
        with pytest.raises(SystemExit):
            build.main(["manifest/own", "--layout", wrong, *where])
        assert message in capsys.readouterr().err


def test_red_and_green_masks(tmp_path: Path) -> None:
    others, fakes, real = FOLDERS["columbia"]
    rng = np.random.default_rng(0)
    for name in (*fakes, *real):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(path)
    colours = np.zeros((16, 24, 3), np.uint8)
    colours[:, :8], colours[:, 8:] = (200, 0, 0), (0, 200, 0)
    path = tmp_path / others[0]
    path.parent.mkdir()
    Image.fromarray(colours).save(path, quality=95, subsampling=0)
    where = ["--images", os.fspath(tmp_path), "--data_dir", f"{tmp_path}/data"]
    assert build.main(["manifest/own", "--layout", "columbia", *where]) == 0
    builder = build.make_builder("manifest/own_fake", f"{tmp_path}/data")
    (example,) = builder.as_data_source("test")
    np.testing.assert_array_equal(example["mask"][..., 0], colours[..., 1] // 200 * 255)
    check = ["manifest/own", "--check", *where[2:]]
    assert build.main(check) == 0
    Image.fromarray(colours[::-1, ::-1]).save(path, quality=95, subsampling=0)
    assert build.main(check) == 1
    (said,) = build.changed_sources(["manifest/own_fake"], where[3])
    assert f"(1 changed; first {others[0]})" in said
