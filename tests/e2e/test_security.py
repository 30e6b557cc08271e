"""A file from a stranger runs nothing: each way into the program is tried with a trap, and the source is searched."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from entry_point import run_net
from paths import CONFIGS, REPOSITORY, TOOLS
from safetensors.torch import save_file
from tiny_runs import QUIET, tiny_config

from mfm_core.checkpoint.io import load_file_state
from mfm_core.config import load_config
from mfm_core.errors import UserError
from mfm_core.probe.store import load_features
from mfm_core.report.html import write_report
from mfm_image.entry import main

SOURCES = sorted([*REPOSITORY.glob("packages/*/src/**/*.py"), *TOOLS.glob("*.py")])
FINETUNE = str(CONFIGS / "demo" / "finetune.yaml")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def trap(tmp_path):
    """The folder that must not come into being. That the trap works is seen first."""
    folder = tmp_path / "made_by_a_stranger"
    pickle.loads(pickle.dumps(Trap(folder)))
    folder.rmdir()
    yield folder
    assert not folder.exists(), "code of a file was run"


def write(path: Path, trap: Path, form: str) -> Path:
    """A file that holds the trap, as a stranger would write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "torch":
        torch.save({"format": "mfm-1", "model_state": {"a": Trap(trap)}}, path)
    elif form == "legacy":
        torch.save({"model_state": Trap(trap)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Trap(trap)))
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pyth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_checkpoint_files(form, suffix, trap, tmp_path):
    path = write(tmp_path / f"x{suffix}", trap, form)
    with pytest.raises(UserError, match="x" + suffix):
        load_file_state(str(path))


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("door", ["TRAIN.CHECKPOINT_FILE_PATH", "TEST.CHECKPOINT_FILE_PATH", "resume", "picture"])
def test_runs(door, form, trap, photo_folder, tmp_path, capsys):
    output = tmp_path / "run"
    home = output / "checkpoints" if door in ("resume", "picture") else tmp_path
    path = write(home / "checkpoint_epoch_00001.pyth", trap, form)
    more = [door, path] if "." in door else []
    more += ["TRAIN.ENABLE", "False"] if door.startswith("TEST") else []
    more += ["TASK", "visualise"] if door == "picture" else []
    assert main(tiny_config("pretrain", photo_folder, output, *QUIET, *more)) == 2
    shown = capsys.readouterr()
    assert path.name in shown.out + shown.err


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_the_conversion_tool(form, trap, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOLS / "convert_checkpoint.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = write(tmp_path / "x.pyth", trap, form)
    assert tool.main([str(path), str(tmp_path / "out.pth")]) == 2
    assert "run code" in capsys.readouterr().err
    torch.save({"format": "mfm-1", "model_state": {"a": torch.ones(1)}, "cfg": yaml_trap(trap)}, path)
    with pytest.raises(yaml.YAMLError):
        tool.main([str(path), str(tmp_path / "out.pth")])


def yaml_trap(trap: Path) -> str:
    return f"RNG_SEED: !!python/object/apply:os.mkdir ['{trap}']\n"


TAGS = (
    "!!python/object/apply:os.mkdir ['{}']",
    "!!python/object/new:os.mkdir ['{}']",
    "!!python/object/apply:builtins.eval [\"__import__('os').mkdir('{}')\"]",
    "!!python/object/apply:subprocess.check_call [['mkdir', '{}']]",
)


@pytest.mark.parametrize("place", ["file", "base", "base of a base", "list of bases"])
@pytest.mark.parametrize("tag", TAGS)
def test_yaml(tag, place, trap, tmp_path):
    assert yaml.unsafe_load(TAGS[0].format(trap)) is None and trap.is_dir(), "the trap works"
    trap.rmdir()
    path, deep = tmp_path / "run.yaml", tmp_path / "deep.yaml"
    deep.write_text("RNG_SEED: " + tag.format(trap) + "\n")
    (tmp_path / "middle.yaml").write_text("_BASE_: deep.yaml\n")
    base = {"file": "", "base": "deep.yaml", "base of a base": "middle.yaml", "list of bases": "[deep.yaml]"}[place]
    path.write_text(f"_BASE_: {base}\n" if base else deep.read_text())
    with pytest.raises(UserError, match="tags that run code are refused"):
        load_config(str(path))


@pytest.mark.parametrize("suffix", [".py", ".yaml"])
def test_a_program_in_place_of_a_configuration(suffix, trap, tmp_path):
    """yacs runs .py files as configurations."""
    path, base = tmp_path / f"run{suffix}", tmp_path / "base.py"
    for file in (path, base):
        file.write_text(f"import os\nos.mkdir({str(trap)!r})\ncfg = dict(RNG_SEED=1)\n")
    with pytest.raises(UserError):
        load_config(str(path))
    path.write_text("_BASE_: base.py\n")
    with pytest.raises(UserError):
        load_config(str(path))


@pytest.mark.parametrize("key", ["RNG_SEED", "SOLVER.BASE_LR", "SOLVER.BETAS", "PICTURE.KIND", "AUG.AA_TYPE", "DEVICE"])
def test_values_on_the_command_line(key, trap, capsys):
    for value in (f"__import__('os').mkdir('{trap}')", yaml_trap(trap), f"[__import__('os').mkdir('{trap}')]"):
        run_net.main(["--cfg", FINETUNE, "--dry-run", key, value])
    capsys.readouterr()


def test_caches(trap, tmp_path):
    for form in ("torch", "legacy", "pickle"):
        assert load_features(write(tmp_path / "features.safetensors", trap, form), {}) is None
    save_file({"features": torch.ones(1)}, tmp_path / "features.safetensors", {"identity": yaml_trap(trap)})
    assert load_features(tmp_path / "features.safetensors", {}) is None


def test_names_are_text_in_the_report(tmp_path):
    """Of files, classes, runs and whatever else a log says. The page may also load and run nothing."""
    nasty = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    lines = [
        {"kind": "run", "name": nasty, "time": nasty, "config": {nasty: nasty}, "environment": {nasty: nasty}},
        {"kind": "step", "step": 1, "loss": 1.0, nasty: 2.0},
        {"kind": "epoch", "epoch": 1, "step": 1, f"{nasty}/k_3": 1.0},
        {"kind": "bad_file", "path": f"/data/{nasty}.JPEG", "reason": nasty, "epoch": 1},
        {"kind": "warning", "message": nasty},
        {"kind": "table", "name": nasty, "head": [nasty], "rows": [[nasty]], "caption": nasty, "epoch": 1},
        {"kind": "picture", "file": "../../etc/passwd", "caption": nasty, "epoch": 1},
        {"kind": "end", "status": nasty, "message": nasty},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([tmp_path], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<img" not in page and "root:" not in page
    assert page.count("&lt;script&gt;") >= 8 and "default-src 'none'" in page


FORBIDDEN = {
    *("eval", "exec", "execfile", "compile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.load", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system", "os.popen"),
    *("shutil.unpack_archive", "tarfile.open", "torch.hub.load", "torch.package.PackageImporter", "CfgNode.load_cfg"),
}


def calls_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_source(path):
    """What could run a file's code, or write where an archive says, is nowhere in the packages and tools."""
    for name, keywords, line in calls_of(path):
        where = f"{path}:{line} calls {name}"
        assert name not in FORBIDDEN and not name.endswith((".extractall", ".extract", ".load_cfg")), where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", where
        assert keywords.get("shell", "False") == "False" and keywords.get("allow_unsafe", "False") == "False", where
