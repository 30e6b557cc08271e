"""Installs core + image, then core + video, each in a fresh environment, and runs the modality's tests there.

    python tools/test_packages.py --torch-from .venv/bin/python [--only image]

The environment holds what `pip install packages/mfm_core packages/mfm_image` brings and pytest, nothing else; in
particular nothing of the other modality. The torch wheels, gigabytes, are linked from another environment instead of
downloaded. Tests marked slow are left out: `make test` runs them, and what they tell is not about packages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = ("torch", "torchvision", "triton", "nvidia-", "cuda-", "sympy", "mpmath", "networkx")
"""Distributions (or beginnings of their names) that are linked."""
ABSENT = {"image": ("decord", "av", "pytorchvideo", "mfm_video"), "video": ("mfm_image",)}
"""What must not be there when a modality is tested alone."""
LIST_FILES = """
import importlib.metadata as metadata, json, sys
found = {}
for dist in metadata.distributions():
    name = dist.metadata["Name"].lower()
    if any(name == s or s.endswith("-") and name.startswith(s) for s in json.loads(sys.argv[1])):
        for file in dist.files or ():
            if file.parts[0] != "..":
                found[file.parts[0]] = str(dist.locate_file(file.parts[0]))
print(json.dumps(found))
"""


def link_torch(source: Path, environment: Path) -> None:
    """Links torch and what belongs to it from the environment of the interpreter `source` into `environment`."""
    listed = subprocess.run(
        [source, "-c", LIST_FILES, json.dumps(SHARED)], check=True, capture_output=True, text=True
    ).stdout
    packages = next(environment.glob("lib/python*/site-packages"))
    for name, path in json.loads(listed).items():
        if name != "__pycache__" and not (packages / name).exists():
            os.symlink(Path(path).resolve(), packages / name)


def run_alone(modality: str, torch_from: Path) -> int:
    """The exit code of the modality's tests, or 1 where a package that must be absent can be imported."""
    environment = REPOSITORY / f".venv-{modality}"
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    link_torch(torch_from.absolute(), environment)
    python = environment / "bin" / "python"
    packages = [REPOSITORY / "packages" / name for name in ("mfm_core", f"mfm_{modality}")]
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", REPOSITORY / "constraints.txt"]
    subprocess.run([python, *install, *packages, "pytest", "pytest-xdist"], check=True)
    absent = ABSENT[modality]
    check = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in {absent}))"
    if subprocess.run([python, "-c", check]).returncode:
        print(f"{environment} has one of {', '.join(absent)}: the test would prove nothing", file=sys.stderr)
        return 1
    tests = ["-n", "auto", "-m", "not slow", f"tests/{modality}"]
    return subprocess.run([python, "-m", "pytest", *tests], cwd=REPOSITORY).returncode


def main() -> int:
    """Returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-from", type=Path, required=True, help="an interpreter that has torch")
    parser.add_argument("--only", choices=ABSENT, nargs="+", default=list(ABSENT), help="which modalities")
    options = parser.parse_args()
    codes = (run_alone(modality, options.torch_from) for modality in options.only)
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
