"""Builders for the notebook tests: tiny notebooks, and a Jupyter data folder that is not the
account's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

PARAMETERS = 'recipe = "lab"\nrun_dir = "../runs/lab"\nseed = 0\ndevice = "cpu"\nforce = False'


@pytest.fixture(autouse=True)
def private_jupyter(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signatures and kernels of the account that runs the tests are neither used nor touched."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path_factory.mktemp("jupyter")))


@pytest.fixture
def notebook_json() -> Callable[..., dict]:
    """A clean notebook as JSON: `cells` are (id, code); a title and, unless `parameters` is None, a
    parameters cell."""

    def build(*cells: tuple[str, str], parameters: str | None = PARAMETERS) -> dict:
        def code(name: str, source: str, tags: list[str]) -> dict:
            metadata = {"tags": tags} if tags else {}
            empty = {"execution_count": None, "outputs": []}
            return {
                "cell_type": "code",
                "id": name,
                "metadata": metadata,
                "source": source,
                **empty,
            }

        made = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Do a thing"}]
        if parameters is not None:
            made.append(code("parameters", parameters, ["parameters"]))
        kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        made += [code(name, source, []) for name, source in cells]
        return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}

    return build


@pytest.fixture
def write_notebook(tmp_path: Path, notebook_json: Callable[..., dict]) -> Callable[..., Path]:
    """Write a clean notebook into tmp_path/notebooks; returns its path."""

    def write(name: str, *cells: tuple[str, str], **options: str | None) -> Path:
        path = tmp_path / "notebooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(notebook_json(*cells, **options)), encoding="utf-8")
        return path

    return write
