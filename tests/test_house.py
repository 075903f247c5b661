"""The house rules as a test: imports, homes of heavy libraries, sizes, names, entrypoints."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONTROL_ROOMS = {"lake", "training", "validation", "registry", "rollout"}
LOW = {"privacy", "observability", "core"}
MAY_IMPORT = {
    "core": {"core"},
    "privacy": {"privacy", "core"},
    "observability": {"observability", "core"},
    **{room: {room} | LOW for room in CONTROL_ROOMS},
    "serving": {"serving"} | LOW,
    "tasks": {"tasks"} | CONTROL_ROOMS | LOW,
    "flows": {"flows", "tasks"} | CONTROL_ROOMS | LOW,
    "cli": {"cli", "flows", "tasks", "serving"} | CONTROL_ROOMS | LOW,
}
ROOMS = set(MAY_IMPORT)
HOMES = {
    "prefect": {"cli", "flows", "tasks"},
    "mlflow": {"registry"},
    "great_expectations": {"validation"},
    "evidently": {"validation"},
    "deltalake": {"lake"},
    "datasets": {"lake", "training"},
    "peft": {"training"},
    "optimum": {"training"},
    "nncf": {"training"},
    "kubernetes": {"rollout"},
    "kserve": {"serving"},
    "iree": {"training", "serving"},
    "openvino_genai": {"serving"},
    "vllm": {"serving"},
    "fastapi": {"serving"},
    "torch": {"training", "serving", "privacy"},
}
ONE_FILE_HOMES = {"optimum": "training/graph.py", "nncf": "training/graph.py"}
LAZY = {
    "torch", "mlflow", "great_expectations", "evidently", "openvino", "openvino_genai",
    "transformers", "peft", "optimum", "nncf", "datasets", "kserve", "openvino_tokenizers", "iree",
}  # fmt: skip
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
FLOW_LINES_MAX = 40


def sources() -> list[Path]:
    return sorted(
        path for room in [*ROOMS, "tests", "benchmarks"] for path in (ROOT / room).rglob("*.py")
    )


def room_files() -> list[Path]:
    return [path for path in sources() if path.relative_to(ROOT).parts[0] in ROOMS]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", room_files(), ids=name)
def test_imports_follow_the_house(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text())
    for module, node in imports(tree):
        top = module.split(".")[0]
        if top in ROOMS:
            assert top in MAY_IMPORT[room], f"{name(path)}:{node.lineno} imports {module}"
        home = HOMES.get(top)
        assert home is None or room in home, f"{name(path)}:{node.lineno} imports {module}"
        one_file = ONE_FILE_HOMES.get(top)
        assert one_file in (None, name(path)), f"{name(path)}:{node.lineno} imports {module}"


@pytest.mark.parametrize("path", room_files(), ids=name)
def test_heavy_libraries_are_imported_lazily(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        for module, found in imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            heavy = module.split(".")[0] in LAZY and path.name not in ALWAYS_HEAVY
            assert not heavy, f"{name(path)}:{found.lineno} imports {module} at its top"


ALWAYS_HEAVY: set[str] = set()


@pytest.mark.parametrize("path", sources(), ids=name)
def test_sizes_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            flow = path.parent.name == "flows"
            limit = FLOW_LINES_MAX if flow else FUNCTION_LINES_MAX
            assert lines <= limit, f"{name(path)}:{node.lineno} {node.name} has {lines} lines"


def test_names_say_what_is_inside() -> None:
    for path in sources():
        stems = {*path.relative_to(ROOT).with_suffix("").parts}
        assert not stems & BANNED_NAMES, name(path)
    flows = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert not flows & (ROOMS | set(sys.stdlib_module_names) | set(HOMES))


@pytest.mark.parametrize("path", room_files(), ids=name)
def test_modules_and_flows_keep_their_form(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name(path)} needs a docstring"
    if path.parent.name == "flows":
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Try)], name(path)


LIGHT_MODULES = [
    "cli.main", "rollout.keeper", "validation.canary",
    *(f"flows.{path.stem}" for path in sorted((ROOT / "flows").glob("*.py"))),
]  # fmt: skip


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_entrypoints_load_nothing_heavy(module: str) -> None:
    heavy = {"torch", "mlflow", "great_expectations", "evidently", "openvino", "transformers"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def entrypoints() -> list[str]:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    return sorted({item["entrypoint"] for item in content["deployments"]})


@pytest.mark.parametrize("entrypoint", entrypoints())
def test_prefect_entrypoints_load(entrypoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    assert flow.name


def test_no_deployments_run_writes_into_a_pipe_to_its_worker() -> None:
    """Rich ends a process that writes to a broken pipe: a worker's death would end its runs."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for item in content["deployments"]:
        assert item["work_pool"]["job_variables"] == {"stream_output": False}, item["name"]
