"""A site file is checked before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechgpt_lib.cluster.site import EXAMPLE, Site, load_site
from speechgpt_lib.errors import UserError


def test_the_example_is_a_site_that_names_every_key() -> None:
    site = load_site(EXAMPLE)
    assert site.ranks == 4 and site.array.at_once == 16
    written = yaml.safe_load(EXAMPLE.read_text())
    assert set(written) == set(Site.model_fields)
    for name in ("times", "array"):
        assert set(written[name]) == set(getattr(site, name).model_fields_set)


def test_without_a_file_the_cluster_decides() -> None:
    site = load_site(None)
    assert site.partition is None and site.ranks == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "unknown key 'partitoin'; allowed here: account, "),
        ("array: {width: 3}", "unknown key 'array.width'; allowed here: at_once"),
        ("gpus_per_node: -1", "gpus_per_node: .*greater than or equal to 0"),
        ("times: {training: tomorrow}", "times.training: .*days-hours:minutes:seconds"),
        ("array: {tasks: 0}", "array.tasks: .*greater than 0"),
        ("- gpu", "expected keys and values, found list"),
        ("partition: [", "is no site file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_site(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no site file .*copy .*site\.yaml"):
        load_site(tmp_path / "site.yaml")
