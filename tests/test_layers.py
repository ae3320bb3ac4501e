"""Who may import whom (docs/architecture.md), and what must not be loaded by it."""

import ast
import importlib
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from runpy import run_path

import pytest
from conftest import ROOT, items

from asynclab.processes.server import MODULES
from asynclab.storage import names

SCRIPT = run_path(str(ROOT / "scripts" / "packages.py"))
MAY_IMPORT = {  # and does, besides the small modules that anybody may
    "nets": set(),
    "optim": set(),
    "adapters": set(),
    "envs": {"adapters"},
    "memory": {"envs"},
    "agents": {"memory", "nets"},
    "distributed": {"optim"},
    "processes": set(),
    "storage": {"distributed", "memory"},
    "training": {"agents", "distributed", "envs", "memory", "processes", "storage"},
    "simulation": {"cluster", "distributed", "processes", "storage", "training"},
    "cluster": {"distributed", "envs", "processes", "storage", "training"},
    "config": {"storage"},
    "console": set(),
    "sweeps": {"config", "storage"},
    "analysis": {"config", "storage", "sweeps"},
    "evaluation": {"adapters", "agents", "analysis", "config", "distributed", "envs", "nets", "processes", "storage"},
    "run": {"agents", "analysis", "cluster", "config", "console", "distributed", "envs", "evaluation", "memory", "nets",
            "processes", "simulation", "storage", "training"},
    "build": {"config", "run", "storage"},
    "job": {"analysis", "build", "config", "processes", "run", "storage"},
    "main": {"config", "job", "sweeps"},
    "library": {"analysis", "config", "console", "evaluation", "job", "processes", "run", "storage", "sweeps"},
    "doctor": {"adapters", "agents", "build", "distributed", "envs", "memory", "optim", "processes", "run",
               "simulation", "training"},
}  # fmt: skip
FORBIDDEN = {
    "agents": {"multiprocessing", "hydra"},
    "distributed": {"gymnasium", "hydra"},
    "analysis": {"torch"},
    **{base: {"hydra", "gymnasium.vector", "multiprocessing"} for base in SCRIPT["BASE"]},
}
HYDRA = {"job", "library", "main", "build", "config", "doctor", "evaluation", "run", "storage", "sweeps", "analysis"}
FILES = [*ROOT.glob("asynclab/**/*.py")]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
CORE = {"agents", "distributed", "envs", "flat", "memory", "nets", "optim", "schedules", "training"}
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_package_imports_what_it_may(name):
    assert SCRIPT["graph"]()[name] - SCRIPT["BASE"] == MAY_IMPORT[name], "also take off the list what is not needed"


def test_every_module_has_its_place():
    assert set(SCRIPT["graph"]()) == {*MAY_IMPORT, *SCRIPT["BASE"]}


def test_what_anybody_may_import_imports_nothing_else():
    assert all(SCRIPT["graph"]()[base] <= SCRIPT["BASE"] for base in SCRIPT["BASE"])


def test_the_picture_is_that_of_the_imports():
    assert SCRIPT["drawing"]() in PAGE, "run python scripts/packages.py"


def test_the_table_of_the_house_has_every_module():
    rows = re.findall(r"^\| (?:`(\w+)/`|(?:top|small) modules) \| (.*) \|$", PAGE, re.MULTILINE)
    listed = {(package, name) for package, holds in rows for name in re.findall(r"`(\w+)`", holds)}
    found = {(path.parent.name.replace("asynclab", ""), path.stem) for path in FILES if path.stem != "__init__"}
    assert found <= listed, found - listed


def functions_of(text):
    """Return what functions do, by name, without comments and docstrings."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            node.body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            found.setdefault(node.name, set()).add(ast.dump(node))
    return found


def test_the_code_on_the_page_is_that_of_the_files():
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert [file for file, _ in blocks] == ["asynclab/training/loop.py", "asynclab/training/learner.py"]
    for file, block in blocks:
        real = functions_of((ROOT / file).read_text())
        shown = functions_of(block)
        assert len(shown) == 2
        assert all(dumps <= real[name] for name, dumps in shown.items()), f"{file} has changed"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_stay_where_they_belong(path):
    part = SCRIPT["part"](path)
    for name in SCRIPT["imports"](path):
        for forbidden in FORBIDDEN.get(part, set()):
            assert not name.startswith(forbidden), f"{part} imports {name}"
        if name.split(".")[0] in ("hydra", "omegaconf"):
            assert part in HYDRA, f"{part} imports {name}"


def large(*modules):
    """Return what is loaded, of what takes seconds, when these modules are."""
    code = f"import sys, {', '.join(modules)}; print([name for name in ('torch', 'gymnasium') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_only_the_cluster_imports_ray():
    users = {SCRIPT["part"](path) for path in FILES if any(n.split(".")[0] == "ray" for n in SCRIPT["imports"](path))}
    assert users == {"cluster"}
    code = "import sys, asynclab.main, asynclab.build, asynclab.cluster.node; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_plots_and_reports_need_no_torch():
    modules = sorted(f"asynclab.analysis.{path.stem}" for path in ROOT.glob("asynclab/analysis/[!_]*.py"))
    assert large(*modules) == "[]"


def test_the_fork_server_is_started_before_anything_large_is_imported():
    assert large("asynclab.main", "asynclab.processes.server") == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_what_the_fork_server_imports_exists(name):
    importlib.import_module(name)  # the server itself says nothing of one that is missing


def test_the_fork_server_of_tests_has_what_their_commands_import():
    for imported in items([modules, modules]):  # a single one runs in this process
        assert imported >= {"warm", "asynclab.build", "torch.utils.tensorboard"}


def test_the_wheel_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("asynclab/**/__init__.py")}
    assert set(listed) == found | {"asynclab.conf", "asynclab.scripts"}


def test_names_of_files_are_spelt_once():
    known = {value: key for key, value in vars(names).items() if key.isupper()}
    for path in FILES:
        if path.name != "names.py":
            for node in ast.walk(ast.parse(path.read_text())):
                spelt = isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value
                assert not (spelt and node.value in known), f"{path}, line {node.lineno}: use names.{known[node.value]}"


def modules():
    yield set(sys.modules)


def code_lines(path):
    """Return how many lines of a file have code, which comments and docstrings are not."""
    text = path.read_text()
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in NO_CODE]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    texts = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    texts = [node for node in texts if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    return len(lines - {line for node in texts for line in range(node.lineno, node.end_lineno + 1)})


def test_the_core_is_short():
    assert sum(code_lines(path) for path in FILES if SCRIPT["part"](path) in CORE) < 3000, "simplify, or move out"


def functions(path):
    """Yield name and lines, without the docstring, of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
            yield node.name, node.end_lineno - first.lineno + 1


@pytest.mark.parametrize("path", [*FILES, *ROOT.glob("[sb]*s/*.py")], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_is_longer_than_a_screen(path):
    assert not [(name, lines) for name, lines in functions(path) if lines > 50]


def test_no_constructor_that_a_config_does_not_make_takes_more_than_eight_arguments():
    configs = "".join(path.read_text() for path in ROOT.glob("conf/**/*.yaml"))
    made = set(re.findall(r"_target_: asynclab[\w.]*\.(\w+)", configs))
    made |= {"Mode", "ActorCritic", "QLearning", "SAC", "DiscreteSAC"}  # what these are made of, or by a function
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name not in made:
                for function in node.body:
                    if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                        assert len(function.args.args) + len(function.args.kwonlyargs) - 1 <= 8, node.name


def test_what_is_made_of_more_than_eight_things_is_told_their_names():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2][:1].isupper():
                assert len(node.args) <= 8, f"{path}, line {node.lineno}: name the arguments"
