"""The four import rules, the floors that imports may only descend, and no circles: read from the source by `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from paths import REPOSITORY, TOOLS

SOURCES = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for root in sorted((REPOSITORY / "packages").glob("*/src"))
    for path in sorted(root.rglob("*.py"))
}
FLOORS = (
    (
        *("nn", "corruption", "losses", "optim", "parallel", "probe", "monitor", "data", "interfaces", "registry"),
        *("errors", "paths", "mirror"),
    ),
    ("targets", "masking", "heads", "config", "checkpoint", "report"),
    ("engine", "objective", "methods", "models"),
    ("tasks",),
)
"""Rooms of mfm_core from the lowest floor up; the modalities stand above all."""
MODEL_ROOMS = {"nn", "heads", "objective", "targets", "masking", "corruption", "losses"}
BACKSTAGE = {"parallel", "checkpoint", "monitor", "engine", "config", "report", "data"}
TOP = ("mfm_image", "mfm_video")


def imports_of(name: str, whole_file: bool = True) -> set[str]:
    """The project's modules that a module imports; without `whole_file`, only what its import needs at once."""
    tree = ast.parse(SOURCES[name].read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if whole_file else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in SOURCES}
    return found


def ours(modules: set[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0].startswith("mfm_")}


def room(module: str) -> str:
    """mfm_core.nn.vit is in room nn; modules of the other packages are in the room of their package's name."""
    package, *rest = module.split(".")
    return rest[0] if package == "mfm_core" and rest else package


def floor(module: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), len(FLOORS))


def test_every_room_has_a_floor():
    rooms = {room(name) for name in SOURCES} - {"mfm_core", *TOP}
    assert rooms <= {name for rooms in FLOORS for name in rooms}


@pytest.mark.parametrize("name", SOURCES)
def test_rules(name):
    package = name.split(".")[0]
    for module in imports_of(name):
        other = module.split(".")[0]
        if package == "mfm_core":
            assert other not in TOP, f"{name} imports {module}: the core knows no modality"
        if package in TOP:
            assert other == package or other not in TOP, f"{name} imports {module}: modalities do not know each other"
        assert other not in {"tools", "run_net", "tests"}, f"{name} imports {module}"
    if package == "mfm_core" and room(name) != "mfm_core":
        for module in ours(imports_of(name)):
            assert floor(module) <= floor(name), f"{name} imports {module} from a floor above"


def test_nothing_imports_a_tool():
    names = {path.stem for path in TOOLS.glob("*.py")}
    for name in SOURCES:
        assert not {module.split(".")[0] for module in imports_of(name)} & names, name


@pytest.mark.parametrize("name", [n for n in SOURCES if room(n) in MODEL_ROOMS or ".backbones" in n])
def test_models_know_nothing_of_the_run(name):
    """Model code imports none of the rooms behind the stage, and sees the configuration only in builders."""
    for module in ours(imports_of(name)):
        assert room(module) not in BACKSTAGE, f"{name} imports {module}"
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.ClassDef) or node.name.endswith("from_cfg"):
            continue
        # a builder's own helper may take the configuration on; it lies beside the builder, in no class
        arguments = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        private = node.name.startswith("_") and not node.name.startswith("__")
        assert "cfg" not in arguments or private and ".backbones" in name, f"{name}.{node.name} takes cfg"


def test_no_circles():
    """No module imports, when it is imported, one that imports it."""
    needs = {name: {m for m in imports_of(name, whole_file=False) if m in SOURCES} for name in SOURCES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name in done:
            return
        for module in sorted(needs[name]):
            # a package's __init__ gathers its own modules, which name their siblings by path, not through it
            if not (name.startswith(f"{module}.") and SOURCES[module].name == "__init__.py"):
                visit(module, (*above, name))
        done.add(name)

    for name in SOURCES:
        visit(name, ())


def test_rooms_have_no_circles():
    """Within a floor, too: room A does not import B where B imports A."""
    needs: dict[str, set[str]] = {}
    for name in SOURCES:
        if name.startswith("mfm_core."):
            needs.setdefault(room(name), set()).update(room(m) for m in ours(imports_of(name)))
    for one, others in needs.items():
        for other in others - {one}:
            assert one not in needs.get(other, set()), f"{one} and {other} import each other"


@pytest.mark.parametrize("entry", ["mfm_image.entry", "mfm_core.engine.run"])
def test_images_need_no_video_packages(entry):
    """decord and pytorchvideo need not be there, nor the other modality."""
    absent = ("decord", "pytorchvideo", "av", "mfm_video") + (("mfm_image",) if "core" in entry else ())
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {entry}"
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
