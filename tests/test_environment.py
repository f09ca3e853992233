"""The set-up's files agree with each other, name no place of their own, and do what they say."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from speechgpt_lib import __version__, doctor
from speechgpt_lib.cli.main import main

CARD = [
    "jupyterlab",
    "papermill",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "matplotlib",
    "ipywidgets",
]  # + fairseq
SETUP_FILES = [
    "pyproject.toml",
    "requirements.lock",
    "Makefile",
    ".ci/run",
    "environment.yml",
    "binder/environment.yml",
    "binder/postBuild",
    "binder/start",
    ".gitignore",
    ".gitattributes",
]
TARGETS = ["install", "tutorial", "lab", "fairseq", "test", "test-fast", "lint", "clean"]


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lock(root):
    """Canonical name → version."""
    lines = lines_of(root)
    pins = [Requirement(line) for line in lines]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert len(versions) == len(lines), "a package stands twice in the lock"
    assert all(re.fullmatch(r"==[0-9][0-9a-z.]*", version) for version in versions.values()), (
        "exact, public versions only"
    )
    return {name: version.removeprefix("==") for name, version in versions.items()}


def lines_of(root) -> list[str]:
    return [
        line for line in (root / "requirements.lock").read_text().splitlines() if line[0] != "#"
    ]


def installed_by_default(project) -> list[Requirement]:
    extras = project["project"]["optional-dependencies"]
    texts = [
        *project["project"]["dependencies"],
        *extras["judge"],
        *extras["judge-open"],
        *extras["dev"],
        *project["build-system"]["requires"],
    ]
    return [Requirement(text) for text in texts]


def pip_section(path) -> list[str]:
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    return next(entry["pip"] for entry in dependencies if isinstance(entry, dict))


def test_lock_has_one_exact_version_of_all_that_pyproject_asks_for(project, lock):
    for requirement in installed_by_default(project):
        version = lock.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version), (
            f"{requirement} excludes the locked {version}"
        )


def test_torch_is_pinned_by_its_plain_version(project, lock):
    assert lock["torch"] == "2.13.0"
    (torch,) = [text for text in project["project"]["dependencies"] if text.startswith("torch")]
    assert torch == "torch>=2.11,<=2.13.0"


def test_lock_is_closed_and_holds_nothing_unneeded(project, lock, root):
    """Follow what the installed packages ask for, on both Python versions."""
    only_on_312 = {
        canonicalize_name(line.split("==")[0])
        for line in lines_of(root)
        if "python_version" in line
    }
    wanted: dict[str, str] = {}
    waiting = [(requirement, "pyproject.toml") for requirement in installed_by_default(project)]
    seen = set()
    while waiting:
        requirement, asked_by = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or (
            asked_by == "torch" and name.startswith(("nvidia", "cuda", "triton"))
        ):
            continue  # torch's GPU libraries differ from build to build: pip's affair
        seen.add((name, extras))
        wanted.setdefault(name, asked_by)
        environments = [
            {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
            for python in ("3.11", "3.12")
            for extra in ["", *extras]
        ]
        try:
            needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed here, for example because only the other Python needs it
        for need in needs:
            if need.marker is None or any(
                need.marker.evaluate(environment) for environment in environments
            ):
                waiting.append((need, name))
    missing = {name: asked_by for name, asked_by in wanted.items() if name not in lock}
    assert not missing, f"asked for, but not in the lock: {missing}"
    unneeded = set(lock) - set(wanted) - only_on_312
    assert not unneeded, f"in the lock, but nothing asks for it: {sorted(unneeded)}"


def test_this_environment_was_made_from_the_lock(lock):
    differing = {}
    for name in lock:
        try:
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if version != lock[name]:
            differing[name] = (version, lock[name])
    assert not differing, f"installed and locked versions differ (make install): {differing}"


@pytest.mark.parametrize("python", ["3.11.2", "3.12.1"])  # Debian 12 has 3.11.2
def test_locked_packages_admit_early_releases_of_python(python, lock):
    installed = {
        canonicalize_name(found.metadata["Name"]): found
        for found in importlib.metadata.distributions()
    }
    ranges = {
        name: installed[name].metadata.get("Requires-Python") for name in lock if name in installed
    }
    assert len(ranges) > 100
    refusing = {
        name: text
        for name, text in ranges.items()
        if text and not SpecifierSet(text).contains(python)
    }
    assert not refusing


@pytest.mark.slow
def test_every_import_is_declared(project, root):
    """The package and its tests import what is asked for by name, not what others bring."""
    imported = {}
    for path in [*(root / "speechgpt_lib").rglob("*.py"), *(root / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            imported |= {name.partition(".")[0]: path.relative_to(root) for name in names}
    everything = [
        *project["project"]["dependencies"],
        *sum(project["project"]["optional-dependencies"].values(), []),
    ]
    declared = {canonicalize_name(Requirement(text).name) for text in everything}
    # The wheel of parselmouth is one compiled module, which packages_distributions overlooks.
    providers = {
        **importlib.metadata.packages_distributions(),
        "parselmouth": ["praat-parselmouth"],
        "piper": ["piper-tts"],
    }
    own = {
        "speechgpt_lib",
        "tests",
        "benchmarks",
        "fairseq",
        *sys.stdlib_module_names,
    }  # fairseq: by `make fairseq` only
    for module in sorted(set(imported) - own):
        distributions = {canonicalize_name(name) for name in providers.get(module, [module])}
        assert distributions & declared, (
            f"{imported[module]} imports {module}, which pyproject.toml doesn't ask for"
        )


@pytest.mark.parametrize("file", ["environment.yml", "binder/environment.yml"])
def test_conda_environments_have_the_locked_versions(file, root, lock):
    pins = [entry for entry in pip_section(root / file) if not entry.startswith("-")]
    versions = dict(pin.split("==") for pin in pins)
    assert sorted(versions) == sorted(CARD)
    assert versions == {name: lock[name] for name in CARD}
    python = yaml.safe_load((root / file).read_text())["dependencies"][0]
    assert doctor.python_check(python.removeprefix("python=") + ".0").ok


def test_conda_environment_points_to_fairseq_and_installs_the_rest(root):
    assert "make fairseq" in (root / "environment.yml").read_text()
    assert pip_section(root / "environment.yml")[-2:] == [
        "--requirement requirements.lock",
        "--editable .",
    ]


def test_binder_environment_needs_no_file_of_the_repository(root):
    """Binder installs it before it copies the repository."""
    assert not [
        entry
        for entry in pip_section(root / "binder" / "environment.yml")
        if entry.startswith(("-", "."))
    ]


def test_binder_installs_the_package_and_runs_smoke(root, tmp_path):
    for program in ("python", "speechgpt"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [root / "binder" / "postBuild"], env=path, text=True, capture_output=True, check=True
    )
    lock, package, smoke = done.stdout.splitlines()
    assert "--requirement requirements.lock" in lock
    assert "--editable ." in package and "--no-deps" in package
    assert smoke == "speechgpt run --recipe smoke"
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    failed = subprocess.run(
        [root / "binder" / "postBuild"], env=path, text=True, capture_output=True
    )
    assert (failed.returncode, failed.stdout) == (3, ""), (
        "a failed installation must fail the build"
    )


def test_binder_start_becomes_the_command_it_is_given(root):
    command = [
        root / "binder" / "start",
        "sh",
        "-c",
        'echo "$1" "$OMP_NUM_THREADS"',
        "sh",
        "two words",
    ]
    assert (
        subprocess.run(command, text=True, capture_output=True, check=True).stdout
        == "two words 1\n"
    )


def test_python_range_and_version_stand_the_same_everywhere(project, root):
    assert project["project"]["requires-python"] == doctor.PYTHONS
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__}" in (root / "CHANGELOG.md").read_text()
    (paper,) = citation["references"]
    assert paper["doi"] == "10.18653/v1/2023.findings-emnlp.1055"
    assert len(paper["authors"]) == 7


@pytest.mark.parametrize("file", SETUP_FILES)
def test_no_registry_and_no_absolute_path_is_named(file, root):
    text = "\n".join(
        line for line in (root / file).read_text().splitlines() if not line.startswith("#!")
    )
    found = re.findall(
        r"\w+://\S+|--(?:extra-)?index-url|--find-links|(?<![\w.*$)/-])/(?:\w+/)+\w*", text
    )
    # A leading slash in .gitignore means the top folder of the clone.
    allowed = {"/runs/", "/build/", "/dist/", "/dev/null"}
    assert not set(found) - allowed


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(root, *arguments: str) -> subprocess.CompletedProcess:
    # Flags of a make that runs these tests must not reach this one.
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(["make", *arguments], cwd=root, env=clean, text=True, capture_output=True)


@needs_make
def test_make_lists_its_targets(root):
    listed = make(root).stdout
    assert [target for target in TARGETS if f"make {target} " in listed] == TARGETS


@needs_make
@pytest.mark.parametrize("name", ["PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONPATH", "PIP_ROOT"])
def test_switches_of_pip_do_not_lead_an_installation_elsewhere(root, tmp_path, monkeypatch, name):
    (tmp_path / "bin").mkdir()
    for program in ("python", "python3"):
        file = tmp_path / "bin" / program
        file.write_text(f'#!/bin/sh\necho "{name}=${name}" >> {tmp_path}/seen\necho 3.11\n')
        file.chmod(0o755)
    monkeypatch.setenv(name, "1")
    done = make(root, f"VENV={tmp_path}", f"PYTHON={tmp_path}/bin/python3", "install")
    assert done.returncode == 0, done.stderr
    seen = set((tmp_path / "seen").read_text().split())
    assert seen == {f"{name}=0" if name == "PIP_USER" else f"{name}="}


@needs_make
@pytest.mark.parametrize(("uid", "said"), [("0", True), ("1000", False)])
def test_jupyter_starts_for_root_too(root, tmp_path, monkeypatch, uid, said):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (tmp_path / "id").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    plan = make(root, "--dry-run", f"VENV={tmp_path}/venv", "lab")
    assert ("--allow-root" in plan.stdout) is said


@needs_make
@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("tutorial", ["speechgpt run --recipe lab"]),
        ("lab", ["jupyter lab notebooks"]),
        (
            "test",
            [
                "ruff check .",
                "ruff format --check .",
                "lint-imports",
                "speechgpt_lib.notebook.lint notebooks",
                "pytest -n 2",
            ],
        ),
        ("test-fast", ['pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"']),
        (
            "lint",
            [
                "ruff check .",
                "ruff format --check .",
                "lint-imports",
                "speechgpt_lib.notebook.lint notebooks",
            ],
        ),
    ],
)
def test_a_target_installs_from_the_lock_first(target, commands, root, tmp_path):
    plan = make(root, "--dry-run", f"VENV={tmp_path}/venv", target)
    assert plan.returncode == 0, plan.stderr
    steps = ["--requirement requirements.lock", "--no-deps --editable .", *commands]
    places = [plan.stdout.find(step) for step in steps]
    assert -1 not in places and places == sorted(places), plan.stdout


@needs_make
def test_clean_keeps_runs(root):
    assert not re.search(r"rm -rf[^\n]*\bruns\b", make(root, "--dry-run", "clean").stdout)


@needs_make
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_an_untried_python_is_refused_in_one_line(version, root, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    done = make(root, f"VENV={tmp_path}/venv", f"PYTHON={python}", "install")
    assert done.returncode != 0
    assert f"{python} is {version}, but Python 3.11 or 3.12 is needed" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_a_missing_python_is_named(root, tmp_path):
    done = make(root, f"VENV={tmp_path}/venv", "PYTHON=python0.0", "install")
    assert done.returncode != 0
    assert "python0.0 is not there" in done.stderr


def test_ci_calls_make_test_from_anywhere_and_passes_its_verdict_on(root, tmp_path):
    (tmp_path / "make").write_text(
        '#!/bin/sh\npwd\necho make "$@" "requires [$SPEECHGPT_REQUIRE]"\n'
        '[ "$1" = test ] && exit 7\nexit 0\n'
    )
    (tmp_path / "make").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CI": "true"}
    environment.pop("SPEECHGPT_REQUIRE", None)  # this test itself runs under .ci/run, which sets it
    command = ["bash", str(root / ".ci" / "run")]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
    )
    expected = [
        str(root),
        "make fairseq quantized natural stores requires []",
        str(root),
        "make test requires [fairseq,descriptions,bitsandbytes,judge-open,natural,browser,slurm,"
        "stores]",
    ]
    assert done.stdout.splitlines() == expected
    assert done.returncode == 7


def test_the_installed_command_is_this_packages(root) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    value, group = project["scripts"]["speechgpt"], "console_scripts"
    assert importlib.metadata.EntryPoint("speechgpt", value, group).load() is main


@pytest.mark.slow
@pytest.mark.parametrize("module", ["dialogue.speechgpt", "pipeline.graph", "notebook.session"])
def test_what_few_need_is_loaded_late(module: str, root: Path) -> None:
    # Two seconds and 20 MB in every process that never reads digits, or m4a.
    code = f"import sys, speechgpt_lib.{module}; print({{'av', 'inflect'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "set()", done.stderr
