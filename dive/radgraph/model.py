"""RadGraph annotations by the `radgraph` package, which runs in a process of its own."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dive.errors import DiveError, checks
from dive.errors.private import without_texts
from dive.files.atomic import write_text
from dive.files.disk import unwritable
from dive.files.lock import hold_file
from dive.radgraph.annotations import NO_ENTITIES, Annotation

MODEL_TYPES = ("radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph")
WEIGHTS_REPO = "StanfordAIMI/RRG_scorers"
_WORKER = Path(__file__).with_name("worker.py")
_UNPACKS = 600.0  # seconds for another process to unpack
_PARTS = ("config.json", "vocabulary", "weights.th")


def user_cache() -> Path:
    """The folder in which programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


class RadGraph:
    """Annotations by the `radgraph` package, which runs in a process of its own.

    It is not imported here. Annotations are kept on disk by text, model type, weights and version.

    Args:
        model_type: "radgraph-xl" (the package's default), "radgraph" (the first model; its numbers
            differ), "modern-radgraph-xl" or "echograph".
        weights: the unpacked model (config.json, vocabulary/, weights.th), a folder that holds it
            under the name of its type, or its .tar.gz. Default: the package's own cache.
        encoder: folder of the BERT model that config.json names; default: looked up by that name.
        cache: folder of the annotations kept; default: the user's cache, dive/radgraph.
        python: the Python that has radgraph; default: this one.
        cuda: number of a GPU, -1 for the CPU; default: the first GPU if there is one.
    """

    def __init__(
        self,
        model_type: str = "radgraph-xl",
        *,
        weights: str | Path | None = None,
        encoder: str | Path | None = None,
        cache: str | Path | None = None,
        python: str | Path | None = None,
        cuda: int | None = None,
    ) -> None:
        if model_type not in MODEL_TYPES:
            raise DiveError(
                f"RadGraph model is {model_type!r}, want one of {', '.join(MODEL_TYPES)}"
            )
        self.model_type = model_type
        self.weights = None if weights is None else checks.path("weights", weights)
        self.encoder = None if encoder is None else checks.path("encoder", encoder)
        self.cache = (
            checks.path("cache", cache) if cache is not None else user_cache() / "dive" / "radgraph"
        )
        self.python = str(python or sys.executable)
        self.cuda = cuda
        self._version: str | None = None

    @property
    def version(self) -> str:
        """Version of the radgraph package; DiveError where it is not installed."""
        if self._version is None:
            self._version = _package_version(self.python)
        return self._version

    @property
    def source(self) -> str:
        """Model type and version, as they appear in the name of a variant."""
        return f"annotated by {self.model_type}, radgraph {self.version}"

    @property
    def identity(self) -> list[str]:
        """The identity of the model; others may annotate differently.

        Type and version alone where the weights are missing, which `annotate` reports.
        """
        try:
            weights = [_fingerprint(self._model_folder())]
        except DiveError:
            weights = []
        return [self.model_type, self.version, *weights]

    def annotate(self, texts: Sequence[str]) -> list[Annotation]:
        """One annotation per text, in order; an empty text has no entities.

        Raises:
            DiveError: the package or the weights are missing, or the model fails on a text.
        """
        wanted = list(dict.fromkeys(text for text in texts if text.strip()))
        if not wanted:
            return [NO_ENTITIES for _ in texts]
        folder = self._model_folder()
        identity = [self.model_type, self.version, _fingerprint(folder)]
        keys = {text: _digest([*identity, text]) for text in wanted}
        with _Store(self.cache / "annotations.sqlite") as store:
            found = store.get(keys)
            missing = [text for text in wanted if text not in found]
            if missing:
                for text, annotation in self._run_model(folder, missing):
                    store.put(keys[text], annotation)
                    found[text] = annotation
        return [found.get(text, NO_ENTITIES) for text in texts]

    def _model_folder(self) -> Path:
        """The folder of config.json, vocabulary/ and weights.th."""
        looked: list[Path] = []
        weights = self.weights
        if weights is not None and weights.is_file():
            return _unpacked(weights, self.cache)
        if weights is None:
            looked.append(default_radgraph_weights(self.model_type, self.version))
        else:
            looked += [weights, weights / self.model_type]
        for folder in looked:
            if all((folder / part).exists() for part in _PARTS):
                return folder
        raise DiveError(
            f"RadGraph: no {', '.join(_PARTS)} in {' or '.join(map(str, looked))}: unpack "
            f"{self.model_type}.tar.gz of the Hugging Face repository {WEIGHTS_REPO} there, or "
            "pass another folder (weights=)"
        )

    def _run_model(self, folder: Path, texts: list[str]) -> Iterator[tuple[str, Annotation]]:
        with tempfile.TemporaryDirectory(prefix="dive-radgraph-") as name:
            staged = Path(name)
            _stage(folder, staged / self.model_type, self.encoder)
            request = {
                "model_type": self.model_type,
                "model_dir": str(staged),
                "cuda": self.cuda,
                "texts": texts,
            }
            request_file = staged / "request.json"
            request_file.write_text(json.dumps(request), encoding="utf-8")
            with open(staged / "log", "w+", encoding="utf-8", errors="replace") as log:
                yield from self._answers([str(request_file)], log, texts)

    def _answers(
        self, arguments: list[str], log: Any, texts: list[str]
    ) -> Iterator[tuple[str, Annotation]]:
        command = [self.python, str(_WORKER), "annotate", *arguments]
        answered = 0
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            encoding="utf-8",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    answer = json.loads(line)
                    text = texts[answer["index"]]
                    if "error" in answer:
                        which = f"text {answer['index'] + 1} of {len(texts)}"
                        raise DiveError(f"RadGraph: {answer['error']} for {which}")
                    answered += 1
                    yield text, answer["annotation"]
            except BaseException:
                process.kill()
                raise
        if process.returncode or answered != len(texts):
            log.seek(0)
            log_tail = "\n".join(log.read().strip().splitlines()[-12:])
            raise DiveError(
                f"RadGraph: the model's process ended with exit code {process.returncode} after "
                f"{answered} of {len(texts)} texts. Its last words:\n"
                f"{without_texts(log_tail, texts)}"
            )


def default_radgraph_weights(model_type: str, version: str) -> Path:
    """The folder in which the radgraph package keeps a model."""
    return user_cache() / "radgraph" / version / model_type


def _package_version(python: str) -> str:
    try:
        done = subprocess.run(
            [python, str(_WORKER), "version"], capture_output=True, text=True, timeout=120
        )
    except OSError as error:
        raise DiveError(f"RadGraph: cannot run {python}: {error.strerror}") from error
    if done.returncode:
        raise DiveError(
            f"RadGraph: the radgraph package is not installed for {python}: "
            "pip install radgraph requests (or the extra dive-mrg[clinical]), or give annotations "
            "from a file"
        )
    return done.stdout.strip()


def _stage(model: Path, target: Path, encoder: Path | None) -> None:
    """Make a model folder under the name that radgraph looks for, with the chosen encoder."""
    # a copy, because radgraph writes a lock file next to the vocabulary; the weights are large
    shutil.copytree(model / "vocabulary", target / "vocabulary")
    os.symlink((model / "weights.th").resolve(), target / "weights.th")
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        if encoder is not None:
            if not (encoder / "config.json").is_file():
                raise DiveError(f"RadGraph encoder: no config.json in {encoder}")
            reader = config["dataset_reader"]["token_indexers"]["bert"]
            embedder = config["model"]["embedder"]["token_embedders"]["bert"]
            reader["model_name"] = embedder["model_name"] = str(encoder.resolve())
    except (ValueError, KeyError, TypeError) as error:
        raise DiveError(
            f"{model / 'config.json'}: not a RadGraph configuration: {error}"
        ) from error
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _unpacked(archive: Path, cache: Path) -> Path:
    """The archive's content, unpacked once below `cache`."""
    stat = archive.stat()
    name = _digest([str(archive.resolve()), stat.st_size, stat.st_mtime_ns])[:16]
    folder = cache / "models" / name
    if not (folder / "complete").exists():
        # one process unpacks while others wait
        with hold_file(folder, wait=_UNPACKS):
            if not (folder / "complete").exists():
                _unpack(archive, folder)
    for inner in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if all((inner / part).exists() for part in _PARTS):
            return inner
    raise DiveError(f"{archive}: holds no RadGraph model ({', '.join(_PARTS)})")


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DiveError(f"{archive}: cannot unpack the RadGraph model: {error}") from error
    write_text(folder / "complete", archive.name + "\n")


def _fingerprint(folder: Path) -> str:
    """A digest of the weights without reading 400 MB: their size, ends and configuration."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    with open(folder / "weights.th", "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        for start in (0, max(0, size - 1_000_000)):
            file.seek(start)
            digest.update(file.read(1_000_000))
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class _Store:
    """Annotations on disk, safe for processes that write at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_Store":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # autocommit: every annotation is kept, whatever happens to this process
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS annotations (key TEXT PRIMARY KEY, annotation TEXT)"
            )
        except (OSError, sqlite3.Error) as error:
            raise DiveError(
                f"{self.path}: cannot keep RadGraph annotations here ({error}): delete the file, "
                "or choose another folder (cache=)"
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def get(self, keys: dict[str, str]) -> dict[str, Annotation]:
        """text -> annotation, for those on disk; `keys` maps texts to keys."""
        found = {}
        query = "SELECT annotation FROM annotations WHERE key = ?"
        with closing(self._db.cursor()) as cursor:
            for text, key in keys.items():
                record = cursor.execute(query, (key,)).fetchone()
                if record is not None:
                    found[text] = json.loads(record[0])
        return found

    def put(self, key: str, annotation: Annotation) -> None:
        record = key, json.dumps(annotation)
        try:
            self._db.execute("INSERT OR REPLACE INTO annotations VALUES (?, ?)", record)
        except sqlite3.Error as error:  # a full disk, say
            raise unwritable(self.path, error) from error
