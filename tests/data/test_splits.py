"""Splits of portraits are built one by one, into one folder, and what is there is not touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsdl_data import build, provenance
from wsdl_data.portraits import samples
from wsdl_data.portraits.portraits_dataset_builder import Builder
from wsdl_jax import inputs
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import ConfigError

NAME = "portraits/regrain-32px"
COUNTS = {"train": 6, "valid": 3, "test": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, made in this process."""
    monkeypatch.setattr(samples, "SPLITS", COUNTS)

    def here(seed, split, *rest) -> Iterator[tuple[bytes, bytes | None]]:
        for index in range(COUNTS[split]):
            yield samples.encoded(seed, split, index, *rest)

    monkeypatch.setattr(samples, "encoded_split", here)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The subset with all its splits, built at once."""
    builder = build.make_builder(NAME, str(tmp_path / "whole"))
    build.prepare(builder)
    return Path(builder.data_dir)


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What tells whether a file was touched, by names."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
    }


def records_of(split: str) -> str:
    return f"portraits-{split}.array_record-00000-of-00001"


def test_one_after_the_other_is_all_at_once(whole: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "data")
    builder = build.make_builder(NAME, root)
    folder = Path(builder.data_dir)
    build.prepare(builder, splits=("test",))
    assert list(builder.info.splits) == ["test"]
    assert build.is_prepared(builder, ("test",)) and not build.is_prepared(builder)
    assert build.missing_splits(builder) == ["train", "valid"]
    assert len(inputs.Examples((NAME,), "test", root)) == 4
    first = inputs.Examples((NAME,), "test", root).provenance
    early = build.make_builder(NAME, root)
    before = files(folder)

    build.prepare(builder, splits={"valid", "train", "test"})
    assert build.is_prepared(builder) and list(builder.info.splits) == list(COUNTS)
    after = files(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {records_of("train"), records_of("valid"), "dataset_info.json"}
    assert sorted(after) == sorted(files(whole))
    for name, (*_, content) in files(whole).items():
        if name != "dataset_info.json":
            assert after[name][-1] == content, name
    found, expected = (json.loads((x / "dataset_info.json").read_text()) for x in (folder, whole))
    assert found == expected
    assert sorted(path.name for path in folder.parent.iterdir()) == [".build.lock", "2.2.0"]
    # A builder that was made before sees what has been added.
    assert early.info.splits.keys() == {"test"} and build.is_prepared(early)
    for split, count in COUNTS.items():
        examples = inputs.Examples((NAME,), split, root)
        assert [r["key"].decode() for r in examples] == [f"{split}/{i:06d}" for i in range(count)]
        # It is the same data as before and as if built at once, for runs that have used it.
        assert provenance.digests(examples.provenance) == provenance.digests(first)
    reference = inputs.Examples((NAME,), "valid", str(tmp_path / "whole")).provenance
    assert provenance.digests(reference) == provenance.digests(first)
    build.prepare(builder)
    assert files(folder) == after


def test_what_fails_on_the_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = build.make_builder(NAME, str(tmp_path))
    folder = Path(builder.data_dir)
    build.prepare(builder, splits=("test",))
    before = files(folder)

    def no_space(path, content) -> None:
        raise OSError(28, "No space left on device", str(path))

    def stopped(self, split) -> Iterator[None]:
        yield from generate(self, split)
        raise KeyboardInterrupt

    generate = Builder._generate_examples
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_whole", no_space)
        with pytest.raises(build.BuildError, match=f"^{NAME}: .*No space left") as error:
            build.prepare(builder, splits=("train",))
    assert "\n" not in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "_generate_examples", stopped)
        with pytest.raises(KeyboardInterrupt):
            build.prepare(builder, splits=("train",))
    assert files(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [".build.lock", "2.2.0"]


def test_what_was_killed_on_the_way_is_made_again(whole: Path, tmp_path: Path) -> None:
    builder = build.make_builder(NAME, str(tmp_path))
    folder = Path(builder.data_dir)
    build.prepare(builder, splits=("test",))
    # Killed while it built the split, and another time before the description named it.
    unfinished = folder.parent / "incomplete.splits" / NAME / "2.2.0"
    unfinished.mkdir(parents=True)
    (unfinished / records_of("train")).write_bytes(b"half")
    (folder / records_of("train")).write_bytes(b"not named yet")
    assert build.is_prepared(builder, ("test",)) and not build.is_prepared(builder, ("train",))
    build.prepare(builder, splits=("train",))
    train = records_of("train")
    assert files(folder)[train][-1] == files(whole)[train][-1]
    assert not (folder.parent / "incomplete.splits").exists()


def test_nothing_is_added_to_what_is_damaged(tmp_path: Path) -> None:
    builder = build.make_builder(NAME, str(tmp_path))
    build.prepare(builder, splits=("test",))
    (Path(builder.data_dir) / records_of("test")).unlink()
    with pytest.raises(build.BuildError, match=r"damaged .*delete this folder and build again"):
        build.prepare(builder, splits=("train",))


def test_a_split_that_is_missing_and_one_that_cannot_be(tmp_path: Path) -> None:
    root, full = str(tmp_path), "portraits/regrain_full-32px"
    for name in (NAME, full):
        build.prepare(build.make_builder(name, root), splits=("valid",))
    told = (
        rf"^the test split of {NAME} is not prepared in {root}/{NAME}/2.2.0: run python -m"
        r" wsdl_data.build portraits --config regrain-32px --split test$"
    )
    with pytest.raises(ConfigError, match=told):
        inputs.Examples((NAME,), "test", root)
    with pytest.raises(ConfigError, match=f"{full} has no split 'test', only train, valid$"):
        inputs.Examples((full,), "test", root)
    other = "portraits/upsample_full-32px"  # of which nothing is there
    build.prepare(build.make_builder(other, root), splits=("test",))
    assert not (tmp_path / other).exists()
    with pytest.raises(ConfigError, match=f"{other} has no split 'test', only train, valid$"):
        inputs.Examples((other,), "test", root)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["portraits", "--config", "regrain-32px", "--data_dir", str(tmp_path)]
    folder = tmp_path / NAME / "2.2.0"
    lines = []
    for extra in (["--split", "test"], ["--split", "test"], ["--split", "valid"], [], []):
        assert build.main(command + extra) == 0
        lines += capsys.readouterr().out.splitlines()
    few, all_of_them = "3 valid, 4 test images", "6 train, 3 valid, 4 test images"
    assert lines == [
        f"{NAME}: 4 test images in {folder}",
        f"{NAME}: 4 test images already in {folder}",
        f"{NAME}: {few} in {folder}",
        f"{NAME}: {all_of_them} in {folder}",
        f"{NAME}: {all_of_them} already in {folder}",
    ]
    command[2] = "regrain_full-32px"
    assert build.main([*command, "--split", "test"]) == 0
    assert capsys.readouterr().out == (
        "portraits/regrain_full-32px: has no such split, only train, valid\n"
    )
    with pytest.raises(SystemExit):
        build.main(["dolos", "--split", "test", "--data_dir", str(tmp_path)])
    assert "--split goes with portraits" in capsys.readouterr().err


def test_images_of_an_earlier_version_are_taken_as_they_are(whole: Path, tmp_path: Path) -> None:
    """All of 2.1.0's subsets had all their splits, and the images of today's."""
    earlier = tmp_path / NAME / "2.1.0"
    shutil.copytree(whole, earlier)
    description = earlier / "dataset_info.json"
    description.write_text(description.read_text().replace('"2.2.0"', '"2.1.0"', 1))
    text = json.loads(description.read_text()) | {"version": "2.1.0"}
    description.write_text(json.dumps(text))
    builder = build.make_builder(NAME, str(tmp_path))
    assert str(builder.version) == "2.1.0" and build.is_prepared(builder)
    before = files(earlier)
    build.prepare(builder)
    assert files(earlier) == before and not (tmp_path / NAME / "2.2.0").exists()
    assert len(inputs.Examples((NAME,), "test", str(tmp_path))) == 4


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        (
            "",
            {
                "real": {"train", "valid", "test"},
                "ddpm_reconstructed": {"train", "valid"},
                "ddpm_repaint": {"test"},
            },
        ),
        (
            "setup=b",
            {
                "real": {"train", "valid", "test"},
                "ddpm_repaint": {"train", "valid", "test"},
                "ddpm_reconstructed": {"valid"},
            },
        ),
        (
            "setup=c,generator=telea",
            {"telea": {"train", "valid", "test"}, "real": {"valid", "test"}},
        ),
    ],
)
def test_what_configs_need(arg, expected, real_config, monkeypatch) -> None:
    config = real_config("patches", arg, {})
    found = {}
    monkeypatch.setattr(
        build,
        "prepare",
        lambda builder, _, splits: found.update({builder.builder_config_name: set(splits)}),
    )
    inputs.prepare(config, also=("portraits/upsample",))
    assert found == expected | {"upsample": {"test"}}
