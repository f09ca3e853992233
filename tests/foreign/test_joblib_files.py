"""joblib files: arrays come out as they went in, code stays where it is."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.joblib_files import load_joblib
from tests.foreign.hostile import Hostile, HostileEval

COMPRESSIONS = [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)]


@pytest.fixture(scope="module")
def model() -> MiniBatchKMeans:
    data = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    return MiniBatchKMeans(5, n_init=1, random_state=np.random.RandomState(0)).fit(data)


@pytest.mark.parametrize("compress", COMPRESSIONS, ids=str)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_kmeans_of_scikit_learn_comes_out(tmp_path, model, compress, protocol):
    joblib.dump(model, tmp_path / "km.bin", compress=compress, protocol=protocol)
    found = load_joblib(tmp_path / "km.bin")
    np.testing.assert_array_equal(found.cluster_centers_, model.cluster_centers_)
    assert found.n_clusters == 5 and found.name.endswith("MiniBatchKMeans")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(6, dtype=">i4"),
        np.float16([[1.5]]),
        np.zeros((0, 7)),
        np.array([True, False]),
        np.arange(10**5, dtype=np.int64),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_of_any_kind_and_order_come_out(tmp_path, array):
    joblib.dump({"a": array, "b": [array, 3, "x"]}, tmp_path / "a.bin")
    found = load_joblib(tmp_path / "a.bin")
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"][0], array)
    assert found["b"][1:] == [3, "x"]


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("kind", [Hostile, HostileEval])
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: {"cluster_centers_": x}, lambda x: np.array([x, None], dtype=object)],
)
def test_hostile_files_are_refused_and_run_nothing(tmp_path, compress, kind, wrap):
    marker = tmp_path / "ran"
    joblib.dump(wrap(kind(marker)), tmp_path / "x.bin", compress=compress)
    with pytest.raises(UserError, match="was not read"):
        load_joblib(tmp_path / "x.bin")
    assert not marker.exists()


def test_a_model_with_a_hostile_part_is_refused(tmp_path, model):
    marker = tmp_path / "ran"
    hidden = KMeans(2)
    hidden.cluster_centers_ = Hostile(marker)
    joblib.dump(hidden, tmp_path / "x.bin")
    with pytest.raises(UserError, match="system"):
        load_joblib(tmp_path / "x.bin")
    assert not marker.exists()


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_off_file_is_named(tmp_path, model, compress, share):
    joblib.dump(model, tmp_path / "km.bin", compress=compress)
    whole = (tmp_path / "km.bin").read_bytes()
    (tmp_path / "km.bin").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="km.bin"):
        load_joblib(tmp_path / "km.bin")


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"version https://git-lfs", b"hello world", b"\x00" * 50]
)
def test_what_is_no_joblib_file_is_named(tmp_path, content):
    (tmp_path / "km.bin").write_bytes(content)
    with pytest.raises(UserError, match="km.bin"):
        load_joblib(tmp_path / "km.bin")


@pytest.mark.parametrize("compress", COMPRESSIONS[1:], ids=str)
def test_a_file_that_inflates_beyond_all_reason_is_refused(tmp_path, compress):
    path = tmp_path / "km.bin"
    joblib.dump(np.zeros(3_000_000), path, compress=compress)  # 24 MB
    with pytest.raises(UserError, match=r"km.bin inflates to more than \d+ MB"):
        load_joblib(path)


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 2**62), (-5,), (10**6, 10**6), ("x",)])
def test_an_array_that_claims_more_than_the_file_has_is_refused(tmp_path, shape):
    path = tmp_path / "km.bin"
    joblib.dump(np.zeros(7), path)
    claim = pickle.dumps(shape, 2)[2:-1]
    path.write_bytes(path.read_bytes().replace(b"K\x07\x85", claim))
    with pytest.raises(UserError, match="km.bin"):
        load_joblib(path)
