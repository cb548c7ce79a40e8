"""300 malformed files: commands say what is wrong in one line, at once, and change nothing else."""

import io
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import mutations
import pytest
from attempts import Ended
from commands import SIZE, Place
from PIL import Image

SECONDS = 10  # of the processor, beyond what the command takes with files that are in order
Mutate = Callable[[bytes, random.Random], bytes]


class Trial:
    """Commands on malformed files, and what should not be of them.

    Attributes:
      work: the folder for malformed files and for what commands write, in `out`.
      problems: of all commands, with what they have said.
    """

    def __init__(self, place: Place, seed: str):
        self.place, self.work, self.rng = place, place.work, random.Random(seed)
        self.out = self.work / "out"
        self.problems: list[str] = []
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self._usual: dict[str, float] = {}  # seconds of commands with files that are in order

    def measure(self, module: str, *arguments: object) -> None:
        """Runs a command on files that are in order."""
        ended = self._run(module, arguments, 0)
        assert ended.code == 0 and not ended.has_traceback, ended.said
        self._usual[module] = ended.cpu

    def __call__(self, case: str, module: str, *arguments: object) -> Ended:
        """Runs a command on what is malformed; `case` says what that is."""
        surroundings = self._snapshot()
        allowed = self._usual[module] + SECONDS
        ended = self._run(module, arguments, round(allowed))
        problems = []
        if ended.code not in (0, 1, 2):
            problems.append(f"exit code {ended.code} after {ended.cpu:.1f} s")
        if ended.hung:
            problems.append("hung")
        if ended.has_traceback:
            problems.append("a traceback")
        if len(ended.errors) != (ended.code in (1, 2)):
            problems.append(f"{len(ended.errors)} lines of errors")
        changed = self._snapshot() ^ surroundings
        if changed:
            problems.append(f"changed: {sorted({str(path) for path, *_ in changed})}")
        if problems:
            said = "\n".join(ended.said.splitlines()[-6:])
            self.problems.append(f"{module}, {case}: {'; '.join(problems)}\n{said}")
        return ended

    def mutant(self, path: Path, mutate: Mutate) -> None:
        """Mutates a file of the working folder."""
        path.write_bytes(mutate(path.read_bytes(), self.rng))

    def copy_of(self, name: str) -> Path:
        """A new copy of a folder of the inputs."""
        target = self.work / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.place.inputs / name, target)
        return target

    def end(self) -> None:
        """Fails with all problems."""
        assert not self.problems, f"{len(self.problems)}:\n" + "\n\n".join(self.problems)

    def _run(self, module: str, arguments: Sequence[object], cpu_seconds: int) -> Ended:
        shutil.rmtree(self.out, ignore_errors=True)
        words = [str(argument) for argument in arguments]
        return self.place.server(module, words, cpu_seconds=cpu_seconds)

    def _snapshot(self) -> set[tuple[Path, int, int]]:
        """All files that no command may change: a run is written to, and a sweep's tables are."""
        found = set()
        for root in (self.place.inputs, self.work):
            for path in root.rglob("*"):
                parts = path.relative_to(root).parts
                if path.is_file() and parts[0] not in ("out", "run") and "tables" not in parts:
                    status = path.stat()
                    found.add((path, status.st_size, status.st_mtime_ns))
        return found


@pytest.fixture
def trial(place: Place, request: pytest.FixtureRequest) -> Trial:
    return Trial(place, request.node.name)


def pictures() -> dict[str, bytes]:
    """Small images of many kinds of files, by ending."""
    noise = random.Random(0).randbytes(SIZE * SIZE * 3)
    image = Image.frombytes("RGB", (SIZE, SIZE), noise)
    found = {}
    for ending, mode in (
        *(("png", "RGB"), ("jpg", "RGB"), ("gif", "P"), ("tif", "RGB"), ("webp", "RGB")),
        *(("bmp", "RGB"), ("png", "RGBA"), ("png", "I;16"), ("ppm", "RGB"), ("jp2", "RGB")),
    ):
        stream = io.BytesIO()
        kind = Image.registered_extensions()[f".{ending}"]
        (image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)).save(
            stream, kind
        )
        found[f"{mode.replace(';', '')}.{ending}"] = stream.getvalue()
    return found


@pytest.mark.parametrize(("mode", "count"), [("resize", 40), ("tile", 20)])
def test_images_to_predict(trial, mode, count):
    photos = trial.work / "photos"
    photos.mkdir()
    known = pictures()
    in_order = [name for name in known if name.endswith(("png", "jpg", "tif", "webp", "bmp"))]
    for name in in_order:
        (photos / name).write_bytes(known[name])
    run = trial.place.inputs / "run"
    words = (f"--run={run}", f"--images={photos}", f"--out={trial.out}", f"--mode={mode}")
    trial.measure("wsdl_jax.predict", *words)
    for number in range(count):
        name = sorted(known)[number % len(known)]
        path = photos / f"{number:03d}.{name}"
        path.write_bytes(mutations.mutate_png(known[name], trial.rng))
    trial(f"{count} images", "wsdl_jax.predict", *words)
    if (trial.out / "predictions.csv").exists():
        rows = (trial.out / "predictions.csv").read_text().count("\n") - 1
        assert rows == len(in_order) + count
    trial.end()


def test_images_and_masks_to_build(trial):
    """36 files, three a build."""
    words = ("image_folder/mine", "--masks=white", f"--data_dir={trial.out}")
    trial.measure("wsdl_data.build", *words, f"--images={trial.copy_of('own')}")
    for number in range(12):
        own = trial.copy_of("own")
        for kind in ("masks", trial.rng.choice(("real", "fake")), "masks"):
            path = trial.rng.choice(sorted((own / kind).iterdir()))
            trial.mutant(path, mutations.mutate_png)
        trial(f"build {number}", "wsdl_data.build", *words, f"--images={own}")
    trial.end()


def test_lists_to_build(trial):
    own = trial.place.inputs / "own"
    file = trial.work / "list.json"
    names = sorted(path.name for path in (own / "real").iterdir())
    pairs = [[f"{own}/fake/{name}", f"{own}/masks/{name}"] for name in names]
    pairs += [[f"{own}/real/{name}", "Negative"] for name in names]
    whole = repr(pairs).replace("'", '"').encode()
    file.write_bytes(whole)
    words = ("image_folder/mine", "--masks=white", f"--data_dir={trial.out}", f"--images={file}")
    trial.measure("wsdl_data.build", *words)
    for number in range(24):
        file.write_bytes(mutations.mutate_json(whole, trial.rng))
        trial(f"list {number}", "wsdl_data.build", *words)
    trial.end()


def weights_are_read(trial: Trial, file: Path, mutate: Mutate, count: int) -> None:
    whole = file.read_bytes()
    words = (file, "--layout=dolos-patches", f"--out={trial.out}")
    trial.measure("wsdl_jax.convert", *words)
    for number in range(count):
        file.write_bytes(mutate(whole, trial.rng))
        trial(f"file {number}", "wsdl_jax.convert", *words)
    trial.end()


def test_safetensors_to_convert(trial):
    file = trial.work / "weights.safetensors"
    shutil.copy(trial.place.inputs / "weights.safetensors", file)
    weights_are_read(trial, file, mutations.mutate_safetensors, 40)


def test_pytorch_files_to_convert(trial, torch):
    """20 more, where PyTorch is installed."""
    file = trial.work / "weights.pth"
    run = trial.place.inputs / "run"
    trial.place.done("wsdl_jax.convert", run, "--layout=dolos-patches", f"--out={file}")
    weights_are_read(trial, file, mutations.mutate, 20)


def test_forgers_to_forge_with(trial):
    file, folder = trial.work / "forger.safetensors", trial.place.inputs / "own" / "real"
    run = trial.place.inputs / "forger"
    trial.place.done("wsdl_jax.diffusion.forger", f"--run={run}", f"--out={file}")
    whole = file.read_bytes()
    words = (
        *(f"--images={folder}", "--masks=boxes", "--generator=repaint", f"--forger={file}"),
        *("--steps=2", "--jump=1", "--times=1", "--limit=1", "--batch=4", "--name=mine"),
        f"--data_dir={trial.out}",
    )
    trial.measure("wsdl_jax.diffusion.forge", *words)
    for number in range(24):
        file.write_bytes(mutations.mutate_safetensors(whole, trial.rng))
        trial(f"forger {number}", "wsdl_jax.diffusion.forge", *words)
    trial.end()


# ----- Runs ---------------------------------------------------------------------------------------


def commands(trial: Trial) -> dict[str, tuple[object, ...]]:
    """What reads a run directory, `run` in the working folder, or `sweep` with a run in it."""
    run, inputs = trial.work / "run", trial.place.inputs
    return {
        "evaluate": ("wsdl_jax.evaluate", f"--run={run}"),
        "predict": (
            *("wsdl_jax.predict", f"--run={run}", f"--images={inputs / 'photos/00.png'}"),
            f"--out={trial.out}",
        ),
        "report": ("wsdl_jax.report", run, f"--out={trial.out}", "--gallery=0"),
        "convert": (
            "wsdl_jax.convert",
            run,
            "--layout=dolos-patches",
            f"--out={trial.out}/x.safetensors",
        ),
        "main": ("wsdl_jax.main", *trial.place.main_arguments(run)),
        "collect": (
            *(
                "wsdl_jax.sweep",
                inputs / "tiny_sweep.py",
                f"--workdir={trial.work / 'sweep'}",
                "--collect",
            ),
        ),
    }


def runs_are_read(trial: Trial, file: str | None, mutate: Mutate, counts: dict[str, int]) -> None:
    """Mutates a file of a run again and again; None: some files of its checkpoints."""
    known = commands(trial)
    run = trial.copy_of("run")
    if file is not None and file.startswith("robustness"):
        trial.place.done(*commands(trial)["evaluate"], "--perturb=jpeg", "--strengths=50")
    whole = trial.work / "whole"
    shutil.copytree(run, whole)
    for name, count in counts.items():
        for number in range(-1, count):  # first one that is in order
            shutil.rmtree(run)
            shutil.copytree(whole, run)
            if number >= 0:
                paths = [run / str(file)]
                if file is None:
                    every = sorted(path for path in run.glob("checkpoints/**/*") if path.is_file())
                    paths = trial.rng.sample(every, trial.rng.choice((1, 1, 2, 5)))
                for path in paths:
                    trial.mutant(path, mutate)
            if name == "collect":
                known_run = trial.work / "sweep/setups/a/seed-0"
                shutil.rmtree(known_run, ignore_errors=True)
                shutil.copytree(run, known_run)
            if number < 0:
                trial.measure(*known[name])
            else:
                trial(f"{file or 'checkpoint'} {number}", *known[name])
    trial.end()


RUN_FILES = [
    (
        *("config.json", mutations.mutate_json),
        {"report": 9, "convert": 6, "predict": 5, "evaluate": 2, "collect": 2},
    ),
    ("results.json", mutations.mutate_json, {"report": 13, "collect": 7}),
    ("predictions.csv", mutations.mutate_csv, {"report": 12}),
    ("metrics.jsonl", mutations.mutate_json_lines, {"report": 6, "collect": 4, "main": 2}),
    ("real_scores.json", mutations.mutate_json, {"predict": 7, "evaluate": 2}),
    ("robustness-jpeg.json", mutations.mutate_json, {"report": 7}),
    (None, mutations.mutate, {"convert": 18, "predict": 11, "evaluate": 3}),
]


@pytest.mark.parametrize(("file", "mutate", "counts"), RUN_FILES)
def test_files_of_runs(trial, file, mutate, counts):
    runs_are_read(trial, file, mutate, counts)


def test_there_are_three_hundred():
    of_runs = sum(sum(counts.values()) for *_, counts in RUN_FILES)
    assert 40 + 20 + 36 + 24 + 40 + 24 + of_runs == 300
