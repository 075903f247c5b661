"""No line of ours unpickles, runs code out of data, or trusts a model's own code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".venv", ".serin", "build", ".git")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {
    "torch.load": "torch.load unpickles; use safetensors",
    "torch.save": "torch.save pickles; use safetensors",
    "yaml.load": "yaml.load may build objects; use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "pandas.read_pickle": "unpickles",
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "gives text to a shell",
}
SWITCHES = {
    "trust_remote_code": "runs a model's own code",
    "allow_pickle": "unpickles",
    "shell": "gives text to a shell",
}


def sources() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*.py")
        if not path.relative_to(ROOT).parts[0].startswith(LEFT_OUT)
    )


def faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found = [name for name in names if name.partition(".")[0] in MODULES]
            yield from (f"line {node.lineno}: import {name}" for name in found)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in CALLS:
                yield f"line {node.lineno}: {name}: {CALLS[name]}"
            for keyword in node.keywords:
                if keyword.arg in SWITCHES and getattr(keyword.value, "value", True):
                    yield f"line {node.lineno}: {keyword.arg}: {SWITCHES[keyword.arg]}"


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_run_out_of_data(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "yaml.load(text)",
        "eval(text)",
        "Model.from_pretrained(path, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=wanted)",
    ],
)
def test_what_is_looked_for_is_found(text: str) -> None:
    assert list(faults(ast.parse(text)))
