"""Nothing in the package executes what it reads: a look at every call of its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "envrl"
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "code", "pty"}
"""Modules whose readers execute what they read."""
CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle", "shutil.unpack_archive"),
}
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "AutoConfig.from_pretrained": ("trust_remote_code", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
    "AutoModelForCausalLM.from_pretrained": ("use_safetensors", True),
    "Environment": ("autoescape", True),
}
"""Calls that are safe with one argument alone."""
ALLOWED = {("analysis/page.py", "Environment"), ("policy/model.py", "AutoModelForCausalLM.from_pretrained")}
"""Calls whose argument is a variable: escaping by kind of template, one pair of options for all models."""


def complaints(text: str) -> Iterator[str]:
    """What in a module executes, or might execute, what it reads."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {name}" for name in named if name.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if called in CALLS or called.endswith((".extractall", ".extract")):
            yield f"calls {called}"
        if called in REQUIRED and given.get(REQUIRED[called][0]) is not REQUIRED[called][1]:
            yield f"calls {called} without {'='.join(map(str, REQUIRED[called]))}"
        if given.get("trust_remote_code") is True or given.get("shell") is True:
            yield f"calls {called} with code of others"


def test_no_module_executes_what_it_reads() -> None:
    modules = sorted(SOURCE.rglob("*.py"))
    assert len(modules) > 100
    found = {
        (place, complaint)
        for path in modules
        for place in [str(path.relative_to(SOURCE))]
        for complaint in complaints(path.read_text(encoding="utf-8"))
        if not any(place == file and f"calls {call} " in f"{complaint} " for file, call in ALLOWED)
    }
    assert found == set()


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from dill import loads", "eval(x)", "exec(x)", "yaml.load(x)", "os.system(x)"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)", "archive.extractall(x)"),
        *("AutoConfig.from_pretrained(x)", "f(x, trust_remote_code=True)", "subprocess.run(x, shell=True)"),
        "Environment(loader=x)",
    ],
)
def test_a_call_that_executes_is_found(text: str) -> None:
    assert list(complaints(text)) != []


def test_a_safe_call_is_no_finding() -> None:
    assert list(complaints("torch.load(x, weights_only=True); yaml.safe_load(x); import json")) == []
