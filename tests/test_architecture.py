"""Who may import whom (docs/architecture.md), sizes of files, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for folder in ("orchestrator", "trainers", "search_spaces") for p in (ROOT / folder).rglob("*.py"))

MAY_IMPORT_RAY = {
    "teacher_pool",
    "student_run",
    "ray_session",
    "sweep",
    "sweep_groups",
    "sweep_table",
    "sweep_trial",
    "sweep_tuner",
}
MAY_IMPORT_MLFLOW = {"tracking/deliver", "tracking/model"}
LAYERS = [
    {"cli"},
    {"sweep", "report", "plan"},
    {"sweep_table"},
    {"sweep_tuner"},
    {"sweep_trial", "sweep_report"},
    {"sweep_plan"},
    {"experiment"},
    {"backends"},
    {"student_run", "worker", "recorder", "ray_session", "tracking/start", "tracking/deliver", "tracking/model"},
    {"prepare", "results", "display", "teacher_pool", "evaluation"},
    {"job", "teacher_host", "round_cache"},
    {"chains", "checks", "loading"},
    {"config"},
    {"filters", "data/digits", "data/arrays"},
]
"""From the top down: a module imports modules of lower lines (or its own), never of higher ones."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "orchestrator").with_suffix(""))


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in a file, but for type checking only ones."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    skip: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skip.update(n for child in node.body for n in ast.walk(child))
    for node in ast.walk(tree):
        if node in skip:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_design(path: Path) -> None:
    used = roots(path)
    if path.is_relative_to(ROOT / "trainers"):
        assert not used & {"orchestrator", "ray", "mlflow"}
        return
    if not path.is_relative_to(ROOT / "orchestrator"):
        return
    name = name_of(path)
    if name.startswith("method/"):
        third_party = used - set(sys.stdlib_module_names) - {"__future__"}
        assert third_party <= {"torch", "numpy", "orchestrator"}
        inner = {m for m in imports(path) if m.startswith("orchestrator.")}
        assert all(m.startswith(("orchestrator.method", "orchestrator.errors")) for m in inner)
    if "ray" in used:
        assert name in MAY_IMPORT_RAY
    if "mlflow" in used:
        assert name in MAY_IMPORT_MLFLOW


def test_layers_import_downwards_only() -> None:
    level = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    for path in MODULES:
        if not path.is_relative_to(ROOT / "orchestrator") or name_of(path) not in level:
            continue
        for module in imports(path):
            target = module.removeprefix("orchestrator.").replace(".", "/")
            if module.startswith("orchestrator.") and target in level:
                assert level[target] >= level[name_of(path)], f"{name_of(path)} imports {target}, which is above it"


def test_files_stay_small() -> None:
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in MODULES}
    assert {name: size for name, size in sizes.items() if size > 300} == {}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import orchestrator.cli", ("torch", "ray", "mlflow", "pydantic")),
        ("from orchestrator import load_config; load_config()", ("torch", "ray", "mlflow")),
        ("import orchestrator.experiment", ("torch", "ray", "mlflow")),
        ("import orchestrator.student_run", ("torch", "mlflow")),
    ],
)
def test_light_things_stay_light(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_is_fast_and_asks_for_no_gpu() -> None:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "orchestrator.cli", "--help"], capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5
