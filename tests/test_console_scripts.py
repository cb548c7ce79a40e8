"""Console scripts are the modules that `python -m` runs, and run them in the same way."""

import subprocess
import sys
import tomllib
from pathlib import Path

from test_main import HELP

from wsdl_jax import console_scripts

REPOSITORY = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_command_has_a_script():
    scripts = PYPROJECT["project"]["scripts"]
    modules = []
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        assert module == "wsdl_jax.console_scripts"
        assert name == "wsdl-" + function.replace("_", "-")
        modules += getattr(console_scripts, function).args
    assert sorted(modules) == sorted(HELP.keys() - {"wsdl_data.portraits.contact_sheet"})


def test_a_script_runs_as_python_m_does(tmp_path):
    """The module is __main__ under its own name, and imports from the current directory."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "script.py"
    script.write_text("from wsdl_jax.console_scripts import _run\n_run('probe')\n")
    (tmp_path / "own.py").touch()
    (tmp_path / "probe.py").write_text(
        "import sys, own\n"
        "if __name__ == '__main__':\n"
        "    main = sys.modules['__main__']\n"
        "    print(main.__spec__.name, sys.argv[0] == __file__, sys.argv[1:])\n"
        "    sys.exit(3)\n"
    )
    for words in ((script,), ("-m", "probe")):
        done = subprocess.run(
            [sys.executable, *words, "--flag"], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (3, "probe True ['--flag']\n"), done.stderr
