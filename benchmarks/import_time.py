"""How long ``import archipel`` and ``archipel --help`` take, each in a fresh process.

Beside them, the empty interpreter and ``import torch``, which neither of the two must need.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from measure import Figures, side_by_side

ROUNDS = 5
LIMIT = "<= 1"


def main() -> None:
    python = sys.executable
    archipel = str(Path(sysconfig.get_path("scripts")) / "archipel")
    commands = {
        "empty interpreter": [python, "-c", "pass"],
        "import archipel": [python, "-c", "import archipel"],
        "archipel --help": [archipel, "--help"],
        "import torch": [python, "-c", "import torch"],
    }
    check = "import sys, archipel, archipel.app.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([python, "-c", check]).returncode == 0, "torch is imported before it is needed"
    arms = {name: _runner(command) for name, command in commands.items()}
    seconds, _ = side_by_side(arms, ROUNDS)
    figures = Figures("import_time", __doc__.splitlines()[0], {})
    for name, spent in seconds.items():
        figures.row(name, spent, "s")
    figures.ratio("seconds of import archipel", seconds["import archipel"], LIMIT)
    figures.ratio("seconds of archipel --help", seconds["archipel --help"], LIMIT)
    figures.save()


def _runner(command: list[str]):
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
