"""What a recipe needs from elsewhere → a folder that holds it: what may be downloaded is, for the
rest the steps are told.

The recipe names paths below `data`; `parts.yaml` and the corpora's catalogue say what each is.
Repositories are taken at a fixed revision, files are compared with the hash that their publisher
tells, and a connection that breaks costs what had not arrived.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from speechgpt_lib.corpora.catalogue import ARCHIVES, CORPORA, Archive
from speechgpt_lib.corpora.download import download, fetch_file, hash_of
from speechgpt_lib.errors import UserError, one_line
from speechgpt_lib.recipes.schema import Recipe
from speechgpt_lib.recipes.sources import DiskCorpus
from speechgpt_lib.runs.stores import located

_LISTED = yaml.safe_load(Path(__file__).with_name("parts.yaml").read_text(encoding="utf-8"))
UNKNOWN = {
    "what": "a part of your own",
    "size": "?",
    "licence": "yours",
    "manual": "This course doesn't know it: put it there yourself.",
}


@dataclass(frozen=True)
class Part:
    """Something that a recipe reads at `path` below `data`."""

    path: str
    what: str
    size: str
    licence: str
    url: str | None = None
    checksum: str | None = None
    hub: str | None = None  # OWNER/NAME, of a dataset datasets/OWNER/NAME
    revision: str | None = None
    # Files of the repository and their hashes (None: not known); none: the one of the path's name.
    files: tuple[tuple[str, str | None], ...] = ()
    archive: Archive | None = None
    manual: str | None = None

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        if self.hub:
            return f"hub: {self.hub} at {self.revision[:12]}"
        if self.url or self.archive:
            return self.url or self.archive.url
        return f"by hand: {self.manual}"

    def state(self, data: Path | str) -> str:
        """there, missing, or damaged (of what a hash is known)."""
        place = located(self.path, data)
        if not place.exists() or (
            self.files and not any((place / n).exists() for n, _ in self.files)
        ):
            return "missing"
        for name, checksum in self.files or ((".", self.checksum),):
            if self.files and not (place / name).is_file():
                return f"damaged: no {name}"
            file = place / name
            if checksum and file.is_file() and hash_of(file, checksum) != checksum:
                return f"damaged: {file.name} has another hash than its publisher's"
        return "there"


def parts_of(recipe: Recipe) -> list[Part]:
    """Everything that a recipe reads from `data`, in the order of its pipeline."""
    found = [part for corpus in recipe.corpora for part in _parts_of_corpus(corpus)]
    for source in recipe.imports.used().values():
        paths = source.values() if isinstance(source, dict) else [source]
        found += [_named(path) for path in paths if isinstance(path, str)]
    if dialogues := recipe.instructions.dialogues:
        found.append(_named(dialogues))
    return list(dict.fromkeys(found))


def _named(path: str) -> Part:
    facts = _LISTED.get(path, UNKNOWN)
    return Part(path, **facts | {"files": tuple(facts.get("files", {}).items())})


def _parts_of_corpus(corpus: object) -> Iterator[Part]:
    if not isinstance(corpus, DiskCorpus):
        return
    published, root = CORPORA[corpus.reader], Path(corpus.root)
    facts = {"what": published.title, "licence": published.licence}
    archives = [a for a in ARCHIVES.values() if a.corpus == corpus.reader]
    if "://" in corpus.root:  # a store's owner has put it there
        yield Part(corpus.root, size="?", manual="It is read from where it is.", **facts)
        return
    if published.manual or not archives:
        yield Part(corpus.root, size="?", manual=published.manual or UNKNOWN["manual"], **facts)
        return
    for archive in archives:
        folder = Path(archive.folder)
        if corpus.splits is None or folder.name in corpus.splits or archive.is_whole:
            # An archive unpacks to a folder of the corpus' name, or into it.
            inner = len(folder.parts) > 1 or archive.is_whole
            place = root.parent / folder if inner else root / folder
            if inner and folder.parts[0] != root.name:  # the recipe looks elsewhere
                manual = f"{archive.url} unpacks to {folder}: rename it, or the recipe's root."
                yield Part(corpus.root, size=archive.size, manual=manual, **facts)
            else:
                yield Part(place.as_posix(), size=archive.size, archive=archive, **facts)


def fetch(
    recipe: Recipe,
    data: Path,
    say: Callable[[str], None] = print,
    progress: Callable = lambda *_: None,
) -> list[Part]:
    """Download what is missing in `data` and may be downloaded; returns what a person must get.

    Raises UserError: no network, a repository that asks for an agreement, a wrong hash, no space.
    """
    left = []
    for part in parts_of(recipe):
        state = part.state(data)
        if state == "there":
            say(f"there    {part.path}")
        elif part.hub is None and part.url is None and part.archive is None:
            left.append(part)
        else:
            say(f"fetching {part.path} ({part.size}, {part.licence})")
            _download(part, data, say, progress)
    return left


def _download(part: Part, data: Path, say: Callable, progress: Callable) -> None:
    if part.archive:
        depth = len(Path(part.archive.folder).parts)
        download(part.archive, data / Path(*Path(part.path).parts[:-depth]), False, say, progress)
        return
    if part.url:
        fetch_file(part.url, data / part.path, part.checksum, say, progress)
        return
    _from_hub(part, data)
    if (state := part.state(data)) != "there":
        raise UserError(f"{data / part.path} came {state}: delete it and fetch it again")


def _from_hub(part: Part, data: Path) -> None:
    """Files of a repository at its revision, through huggingface_hub, which resumes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    name = part.hub.removeprefix("datasets/")
    options = {"repo_type": "model" if name == part.hub else "dataset", "revision": part.revision}
    folder = data / part.path if part.files else data
    files = [file for file, _ in part.files] or [Path(part.path).name]
    try:
        for file in files:
            hf_hub_download(name, file, local_dir=folder, **options)
    except GatedRepoError:
        how = "accept its terms on its page, then `hf auth login`, then the same command"
        raise UserError(f"{part.hub} asks for an agreement first: {how}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{part.hub} is not on the hub, or not for you: `hf auth login`") from None
    except HfHubHTTPError as error:
        raise UserError(f"{part.hub} could not be fetched ({one_line(error)})") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        why = "HF_HUB_OFFLINE is set" if offline else one_line(error)
        cure = f"this needs the internet; without it, put {', '.join(files)} into"
        what = f"no connection to the hub for {part.hub} ({why})"
        raise UserError(f"{what}: {cure} {folder}; what arrived is kept") from None


def render(parts: list[Part], data: Path | None) -> str:
    """A list of parts for people, with their state where a folder is given."""
    lines = []
    for part in parts:
        state = f"  ({part.state(data)})" if data else ""
        lines += [f"{part.path}{state}", f"    {part.what}; {part.size}; {part.licence}"]
        lines.append(f"    {part.source}")
    return "\n".join(lines) or "this recipe reads nothing from elsewhere"
