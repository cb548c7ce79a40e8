"""One small run of each command that writes, in a place that is the same for every attempt."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
from attempts import REPOSITORY, Ended, Server
from PIL import Image

sys.path.insert(0, str(REPOSITORY / "tests" / "data"))
from dolos_folder import make_dolos_folder

SIZE = 32  # pixels a side of all images
COUNTS = {"train": 12, "valid": 5, "test": 6}
SUBSETS = ("celebahq_real", "celebahq_p2", "celebahq_repaint_p2")
SMALL = {  # of a run of configs/: 2 epochs of 2 steps
    "data.image_size": 64,
    "model.width": 0.05,
    "model.depth": 1,
    "train.batch": 8,
    "train.epochs": 2,
    "train.steps_per_epoch": 2,
    "train.log_every": 1,
    "train.learning_rate": 0.01,
    "eval.batch": 8,
}
SMALL_FORGER = {
    "data.real": "('dolos/celebahq_real',)",
    "data.image_size": SIZE,
    "network.widths": "(8,)",
    "autoencoder.widths": "(8, 8)",
    "network.patch": 2,
    "network.attention": 0,
    "process.steps": 20,
    "train.batch": 4,
    "train.epochs": 2,
    "train.steps_per_epoch": 2,
    "train.log_every": 1,
    "eval.batch": 4,
}

NAMES = (  # of the commands below
    *("main", "main-continued", "evaluate", "evaluate-perturbed", "predict", "report"),
    *("convert-in", "convert-out", "sweep", "sweep-collect", "forge", "forger-train"),
    *("forger-file", "forger-quality", "build-dolos", "build-own"),
)


@dataclasses.dataclass(frozen=True)
class Command:
    """One small run of a command.

    Attributes:
      module: of the project's.
      arguments: of the command.
      before: fills the folder that it works in with what is there before.
    """

    module: str
    arguments: tuple[str, ...]
    before: Callable[[], None] = lambda: None


class Place:
    """A folder with inputs that no command changes, and with one that commands work in.

    Attributes:
      inputs: datasets, a run, a forger, weights, images.
      work: what commands write into.
      commands: by name.
      server: that runs them.
    """

    def __init__(self, folder: Path, server: Server):
        self.inputs, self.work, self.server = folder / "inputs", folder / "work", server
        self._templates = folder / "templates"
        if not (self.inputs / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self._make_inputs()
            (self.inputs / "complete").touch()
        self.commands = self._commands()

    def run(self, command: Command, number: int = 0, fault: str = "kill") -> Ended:
        """Runs a command in the working folder; `number` and `fault` as of `Server`."""
        temporary = self.work / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # what was killed leaves it to the system
        temporary.mkdir()
        return self.server(
            command.module,
            command.arguments,
            watched=self.work,
            temporary=temporary,
            number=number,
            fault=fault,
        )

    def reset(self, name: str) -> None:
        """Brings the working folder into the state before a command."""
        template = self._templates / name
        if not template.exists():
            self._empty()
            (self.work / "notes.txt").write_text("A user's own.\n")
            self.commands[name].before()
            shutil.rmtree(self.work / "tmp", ignore_errors=True)
            shutil.copytree(self.work, template, symlinks=True)
        self._empty()
        shutil.copytree(template, self.work, symlinks=True, dirs_exist_ok=True)

    def _empty(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def done(self, module: str, *arguments: object) -> None:
        """Runs a command that has to succeed."""
        ended = self.server(module, [str(argument) for argument in arguments])
        if ended.code:
            raise RuntimeError(f"{module} {arguments}: {ended.code}: {ended.said}")

    # ----- What there is to work with -------------------------------------------------------------

    def main_arguments(self, run: Path) -> list[str]:
        """Of wsdl_jax.main, for a small run."""
        fields = {**SMALL, "data.dir": self.inputs / "data"}
        return [
            f"--config={REPOSITORY / 'configs/patches.py'}:source=celebahq",
            *(f"--config.{field}={value}" for field, value in fields.items()),
            f"--workdir={run}",
        ]

    def forger_arguments(self, run: Path, part: str) -> list[str]:
        """Of wsdl_jax.diffusion.train, for a small run."""
        fields = {**SMALL_FORGER, "data.dir": self.inputs / "data"}
        return [
            f"--config={REPOSITORY / 'configs/diffusion.py'}:part={part}",
            *(f"--config.{field}={value}" for field, value in fields.items()),
            f"--workdir={run}",
        ]

    def _make_inputs(self) -> None:
        inputs = self.inputs
        inputs.mkdir(parents=True)
        dolos = make_dolos_folder(inputs / "dolos", COUNTS, SIZE)
        subsets = [f"--config={name}" for name in SUBSETS]
        where = f"--data_dir={inputs / 'data'}"
        self.done("wsdl_data.build", "dolos", *subsets, f"--manual_dir={dolos}", where)
        self.done("wsdl_jax.main", *self.main_arguments(inputs / "run"))
        self.done("wsdl_jax.diffusion.train", *self.forger_arguments(inputs / "forger", "pixel"))
        weights = inputs / "weights.safetensors"
        self.done("wsdl_jax.convert", inputs / "run", "--layout=dolos-patches", f"--out={weights}")
        own = inputs / "own"
        (own / "real").mkdir(parents=True)
        rng = np.random.default_rng(0)
        # Names of which the hash leaves no split empty.
        for kind in ("real", "fake", "masks"):
            (own / kind).mkdir(exist_ok=True)
            for number in range(24):
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                if kind == "masks":
                    pixels = np.zeros((SIZE, SIZE), np.uint8)
                    pixels[8:20, 6:18] = 255
                Image.fromarray(pixels).save(own / kind / f"{number:02d}.png")
        photos = inputs / "photos"
        photos.mkdir()
        for number in range(3):
            shutil.copy(own / "real" / f"{number:02d}.png", photos)
        words = {field: value for field, value in SMALL.items() if field != "data.dir"}
        (inputs / "tiny_sweep.py").write_text(
            "def get_sweep(arg):\n"
            f"    fields = {words | {'data.dir': str(inputs / 'data')}!r}\n"
            f"    config = {str(REPOSITORY / 'configs/patches.py')!r}\n"
            "    yield 'setups/a', config + ':source=celebahq', fields\n"
        )

    # ----- Commands -------------------------------------------------------------------------------

    def _copy_of_the_run(self, run: Path) -> None:
        shutil.copytree(self.inputs / "run", run)

    def _stopped_run(self) -> None:
        """As if it had been killed in its second epoch."""
        run = self.work / "run"
        self._copy_of_the_run(run)
        shutil.rmtree(run / "checkpoints" / "4")
        lines = (run / "metrics.jsonl").read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= 3]
        (run / "metrics.jsonl").write_text("\n".join(kept) + '\n{"st')
        for name in ("results.json", "results.txt", "examples.png", "predictions.csv"):
            (run / name).unlink()
        (run / "real_scores.json").unlink(missing_ok=True)

    def _evaluated_before(self) -> None:
        """With the results of an older checkpoint."""
        run = self.work / "run"
        self._copy_of_the_run(run)
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps(results | {"checkpoint": 1}, indent=2) + "\n")
        (run / "results.txt").write_text("older\n")
        (run / "real_scores.json").unlink(missing_ok=True)

    def _commands(self) -> dict[str, Command]:
        inputs, work = self.inputs, self.work
        run = inputs / "run"
        here = f"--run={work / 'run'}"
        sweep = (str(inputs / "tiny_sweep.py"), f"--workdir={work / 'sweep'}")
        report = ("wsdl_jax.report", str(run), f"--out={work / 'report'}")
        to_data = f"--data_dir={work / 'data'}"
        sheet = ("--steps=2", "--count=16", "--batch=8", f"--out={work / 'sheet.png'}")
        weights = inputs / "weights.safetensors"

        def perturbed(strength: int) -> tuple[str, ...]:
            return ("wsdl_jax.evaluate", here, "--perturb=jpeg", f"--strengths={strength}")

        def perturbed_before() -> None:
            self._copy_of_the_run(work / "run")
            self.done(*perturbed(90))

        forger = (
            *("wsdl_jax.diffusion.forger", f"--run={inputs / 'forger'}"),
            f"--out={work / 'forger.safetensors'}",
        )
        quality = ("wsdl_jax.diffusion.quality", f"--forger={inputs / 'forger'}", *sheet)

        def older_forger() -> None:
            self.done(*forger)
            path = work / "forger.safetensors"
            with safetensors.safe_open(path, "numpy") as file:
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() | {"step": "1"}
            safetensors.numpy.save_file(kept, path, metadata)

        return {
            "main": Command("wsdl_jax.main", tuple(self.main_arguments(work / "run"))),
            "main-continued": Command(
                "wsdl_jax.main", tuple(self.main_arguments(work / "run")), self._stopped_run
            ),
            "evaluate": Command("wsdl_jax.evaluate", (here,), self._evaluated_before),
            "evaluate-perturbed": Command(*_split(perturbed(50)), perturbed_before),
            "predict": Command(
                "wsdl_jax.predict",
                (f"--run={run}", f"--images={inputs / 'photos'}", f"--out={work / 'found'}"),
            ),
            "report": Command(
                *_split((*report, "--gallery=6")), lambda: self.done(*report, "--gallery=3")
            ),
            "convert-in": Command(
                "wsdl_jax.convert",
                (str(weights), "--layout=dolos-patches", f"--out={work / 'run'}"),
            ),
            "convert-out": Command(
                "wsdl_jax.convert",
                (str(run), "--layout=dolos-patches", f"--out={work / 'weights.safetensors'}"),
            ),
            "sweep": Command("wsdl_jax.sweep", sweep),
            "sweep-collect": Command(
                "wsdl_jax.sweep", (*sweep, "--collect"), self._collected_before
            ),
            "forge": Command(
                "wsdl_jax.diffusion.forge",
                (
                    *(f"--images={inputs / 'own/real'}", "--masks=boxes", "--generator=telea"),
                    *(f"--size={SIZE}", "--name=mine", to_data),
                ),
            ),
            # The part that is the quickest to compile.
            "forger-train": Command(
                "wsdl_jax.diffusion.train",
                tuple(self.forger_arguments(work / "forger", "autoencoder")),
            ),
            "forger-file": Command(*_split(forger), older_forger),
            "forger-quality": Command(*_split(quality), lambda: self.done(*quality, "--seed=1")),
            "build-dolos": Command(
                "wsdl_data.build",
                ("dolos/celebahq_repaint_p2", f"--manual_dir={inputs / 'dolos'}", to_data),
            ),
            "build-own": Command(
                "wsdl_data.build",
                ("image_folder/mine", f"--images={inputs / 'own'}", "--masks=white", to_data),
            ),
        }

    def _collected_before(self) -> None:
        """A finished sweep, with the tables of when it was not."""
        sweep = self.work / "sweep"
        arguments = (self.inputs / "tiny_sweep.py", f"--workdir={sweep}", "--collect")
        self.done("wsdl_jax.sweep", *arguments)
        self._copy_of_the_run(sweep / "setups/a/seed-0")


def _split(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    return words[0], words[1:]
