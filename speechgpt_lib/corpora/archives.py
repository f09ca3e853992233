"""The archives that anyone may fetch: addresses, MD5 sums and sizes as their publishers give them.

Sums: LibriSpeech's `md5sum.txt` (openslr.org, resource 12) and the data preparation page of
facebookresearch/libri-light.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """`folder` is what it unpacks to, relative to the download folder."""

    name: str
    corpus: str
    url: str
    md5: str
    folder: str
    hours: float
    size: str

    @property
    def file(self) -> str:
        """The file's name, the last part of its address."""
        return self.url.rpartition("/")[2]


def _librispeech(name: str, md5: str, hours: float, size: str) -> Archive:
    url = f"https://www.openslr.org/resources/12/{name}.tar.gz"
    return Archive(name, "librispeech", url, md5, f"LibriSpeech/{name}", hours, size)


def _libri_light(name: str, md5: str, hours: float, size: str) -> Archive:
    url = f"https://dl.fbaipublicfiles.com/librilight/data/{name}.tar"
    return Archive(f"libri-light-{name}", "libri_light", url, md5, name, hours, size)


_ALL = (
    _librispeech("dev-clean", "42e2234ba48799c1f50f24a7926300a1", 5.4, "337 MB"),
    _librispeech("dev-other", "c8d0bcc9cca99d4f8b62fcc847357931", 5.3, "314 MB"),
    _librispeech("test-clean", "32fa31d27d2e1cad72775fee3f4849a9", 5.4, "346 MB"),
    _librispeech("test-other", "fb5a50374b501bb3bac4815ee91d3135", 5.1, "328 MB"),
    _librispeech("train-clean-100", "2a93770f6d5c6c964bc36631d331a522", 100.6, "6.3 GB"),
    _librispeech("train-clean-360", "c0e676e450a7ff2f54aeade5171606fa", 363.6, "23 GB"),
    _librispeech("train-other-500", "d1a0fd59409feb2c614ce4d30c387708", 496.7, "30 GB"),
    _libri_light("small", "c49207eb86a8e8ac895561c37232041e", 577, "35 GB"),
    _libri_light("medium", "c75e7ac62471bfbf2db77528d62a9b74", 5193, "321 GB"),
    _libri_light("large", "4dfbac018f50b99797ece101fc9f0c30", 51934, "3.05 TB"),
)
ARCHIVES = {archive.name: archive for archive in _ALL}
