"""A model as a folder: ONNX graphs, and a manifest that says what they were made for and how to use them.

    <models_dir>/<model_id>/
        manifest.json    `Manifest`
        <head files>     ONNX: one input float32 [n, F]; any graph, one for both heads or one each
        golden.npz       features f4 [k, F] and what they must give: raw f8 [k, 2], calibrated f8 [k, 2]
        psi.json, report.json, report.html   where there are any
        SHA256SUMS       of everything above

The id is `<name>-<end of the training data>-<8 hex digits>`, the digits made of the manifest and the head files: the
same training gives the same id, and no other model has it. Nothing in the folder is code or a pickle. A folder may come
from anybody: everything in it is checked before it is used.
"""

import io
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import onnxruntime
from msgspec import Meta, Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.domain.exit_rule import LabelRule, label_hash
from perpline.features.catalogue import CATALOGUE, Feature, late_bits, schema_hash
from perpline.inference.drift import Reference, read_reference

FORMAT = 1
MANIFEST, GOLDEN, SUMS, PSI, REPORT = "manifest.json", "golden.npz", "SHA256SUMS", "psi.json", "report.json"

MAX_FILE_BYTES = 256 << 20
MAX_FOLDER_BYTES = 1 << 30
MAX_GOLDEN_ROWS = 4096
TOLERANCE = 1e-6
"""How far a golden output may be off: on the machine that wrote it and with its ONNX Runtime it is exact."""

_NAME = r"^[a-z0-9][a-z0-9_]{0,31}$"
Name = Annotated[str, Meta(pattern=_NAME)]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Column = Annotated[int, Meta(ge=0, lt=10_000)]
TimeMs = Annotated[int, Meta(ge=0, lt=253_402_300_800_000)]

Vectors = NDArray[np.float32]
Probabilities = NDArray[np.float64]
"""[n, 2]: long, short."""


class ManifestFeature(Struct, frozen=True):
    """A column of the model's input. Name and version decide; the rest is there to name what differs."""

    name: str
    version: int
    lookback_min: int | None = None
    clip: tuple[float, float] | None = None
    nan: tuple[str, ...] | None = None

    @classmethod
    def of(cls, feature: Feature) -> "ManifestFeature":
        return cls(feature.name, feature.version, feature.lookback_min, feature.clip, feature.nan)


class Head(Struct, frozen=True):
    """Where P(a trade of this side is profitable) comes from: column `column` of the output of an ONNX file."""

    file: FileName
    output: str
    column: Column


class Heads(Struct, frozen=True):
    """May be columns of one output, two outputs of one file, or two files."""

    long: Head
    short: Head


class Calibrator(Struct, frozen=True):
    """Raw score → probability: straight lines between the knots, constant beyond them."""

    x: Annotated[list[float], Meta(min_length=1, max_length=10_000)]
    """Strictly ascending."""
    y: list[float]
    """Never descending, within 0 to 1."""


class Calibrators(Struct, frozen=True):
    long: Calibrator | None = None
    short: Calibrator | None = None


class Training(Struct, frozen=True, kw_only=True):
    """The data: [start, to) in milliseconds."""

    start: TimeMs = field(name="from")
    to: TimeMs
    symbols: list[str]
    rows: int
    n_eff: float | None = None


class Ood(Struct, frozen=True):
    """Bounds of each column in training (0.1 % and 99.9 %); null where a column has none."""

    low: list[float | None]
    high: list[float | None]
    max_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Largest share of columns outside them with which the model may still be asked."""


class Manifest(Struct, frozen=True, kw_only=True):
    """manifest.json. `model_id` is filled in by `write_artefact`."""

    format: Literal[1] = 1
    name: Name
    model_id: str = ""
    created_at: TimeMs
    schema: str
    """Name of the feature subset, for people; `features` and `schema_hash` decide."""
    schema_hash: str
    features: Annotated[list[ManifestFeature], Meta(min_length=1, max_length=10_000)]
    critical: list[str]
    """Features without which the model must not be asked."""
    heads: Heads
    calibrators: Calibrators = Calibrators()
    label: LabelRule
    """What the probability is about."""
    label_hash: str
    threshold: Annotated[float, Meta(ge=0, le=1)]
    """Least calibrated probability of a trade."""
    ev_min_bp: float = 0.0
    train: Training
    dataset_hash: str
    seed: int
    params: dict[str, Any] = {}
    trials: int = 1
    """Configurations that were tried before this one was taken."""
    libraries: dict[str, str] = {}
    known_at: dict[str, Any] = {}
    """When each input counted as known, by table."""
    ood: Ood | None = None
    parent: str | None = None
    """The model that was in force when this one was made."""
    valid_from: TimeMs | None = None
    valid_until: TimeMs | None = None
    """From then on the model decides nothing any more."""
    note: str = ""


class LoadedModel:
    """A model that has been checked and is warm. `predict` may be called from any thread."""

    def __init__(
        self,
        manifest: Manifest,
        features: tuple[Feature, ...],
        graphs: "_Graphs",
        path: Path,
        reference: Reference | None = None,
    ) -> None:
        self.manifest = manifest
        self.path = path
        self.model_id = manifest.model_id
        self.features = features
        by_name = {feature.name: column for column, feature in enumerate(CATALOGUE)}
        self.columns: NDArray[np.intp] = np.array([by_name[feature.name] for feature in features], np.intp)
        """Places of the model's columns in a vector of the whole catalogue."""
        self.rule = manifest.label
        self.label_hash = manifest.label_hash
        self.schema_hash = manifest.schema_hash
        self.threshold = manifest.threshold
        self.ev_min_bp = manifest.ev_min_bp
        self.critical = tuple(manifest.critical)
        names = [feature.name for feature in features]
        self.critical_columns: NDArray[np.intp] = np.array([names.index(name) for name in self.critical], np.intp)
        """Places of the critical features among the model's columns."""
        self.lookback_min = max(feature.lookback_min for feature in features)
        """Minutes to hold so that every column can have a value."""
        self.critical_lookback_min = max(
            (feature.lookback_min for feature in features if feature.name in self.critical), default=1
        )
        """Minutes without which the model is not asked."""
        self.reference = reference
        """What its features and scores were in training; None where it has no psi.json."""
        self.cross_section = any(feature.group == "K" for feature in features)
        """Whether its vectors are made of all symbols together."""
        self.tables = frozenset(table for feature in features for table in feature.tables)
        """The tables that its columns are made of."""
        self.late_bits = late_bits(features)
        """The bits of a late mask that concern it."""
        self.max_ood_share = manifest.ood.max_share if manifest.ood is not None else 1.0
        self._low, self._high = _bounds(manifest.ood, len(features))
        self._graphs = graphs

    def predict(self, vectors: Vectors) -> tuple[Probabilities, Probabilities]:
        """(raw, calibrated), each [n, 2], for vectors [n, F] in the order of `features`.

        Every row by itself: what a row gives does not depend on the others. Raises ValueError for another shape, and
        whatever the graph raises.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.features):
            raise ValueError(f"vectors {vectors.shape} for a model of {len(self.features)} features")
        raw = self._graphs.run(np.ascontiguousarray(vectors, np.float32))
        return raw, _calibrated(self.manifest, raw)

    def ood_share(self, vectors: Vectors) -> NDArray[np.float64]:
        """Share of each row's columns that lie outside their bounds in training; NaN is not outside."""
        outside = (vectors < self._low) | (vectors > self._high)
        share: NDArray[np.float64] = outside.mean(axis=1, dtype=np.float64)
        return share


def is_name(text: str) -> bool:
    """Whether a model's id may begin so."""
    return re.fullmatch(_NAME, text) is not None


def write_artefact(models_dir: Path, manifest: Manifest, files: Mapping[str, bytes], golden_rows: Vectors) -> Path:
    """Write the folder of a model, check it as `load_artefact` does, and return it.

    `files` are the head files and what else belongs to it (psi.json, report.json, report.html, the booster's text),
    `golden_rows` f4 [k, F] rows to prove it with: usual ones, extremes, NaN. A folder of the same id, which is the same
    training, is left as it is. Raises NeedsPerson for a model that could not be served, naming what does not fit.
    """
    for head in (manifest.heads.long, manifest.heads.short):
        if head.file not in files:
            raise NeedsPerson(f"the manifest names {head.file}, which is not among the files")
    manifest = _round_trip(manifest)
    manifest = replace(manifest, model_id=_model_id(manifest, files))
    _features(manifest)
    _check_manifest(manifest)
    content = {**files, MANIFEST: _manifest_json(manifest)}
    rows = np.ascontiguousarray(golden_rows, np.float32)
    raw = _Graphs(manifest, files).run(rows)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, features=rows, raw=raw, calibrated=_calibrated(manifest, raw))
    content[GOLDEN] = buffer.getvalue()
    content[SUMS] = "".join(f"{sha256(content[name]).hexdigest()}  {name}\n" for name in sorted(content)).encode()

    return _write(models_dir, manifest.model_id, content)


def copy_artefact(path: Path, models_dir: Path) -> Path:
    """The folder under `models_dir` with this model, a copy unless it lies there already. Raises NeedsPerson."""
    model_id = load_artefact(path).model_id
    target = models_dir / model_id
    if target.exists() and target.samefile(path):
        return target
    return _write(models_dir, model_id, {**_verified(path), SUMS: _read(path, SUMS)})


def load_artefact(path: Path) -> LoadedModel:
    """The model in this folder, checked and warm.

    In this order: sums, manifest, schema against the running catalogue, graphs, golden rows. Blocks for as long as the
    graphs take to load. Raises NeedsPerson with one line that names what is missing or differs.
    """
    try:
        return _load(path)
    except NeedsPerson as error:
        raise NeedsPerson(f"the model {path.name or path} is refused: {error}") from None


def _write(models_dir: Path, model_id: str, content: Mapping[str, bytes]) -> Path:
    """Write a folder beside its place and move it there when it is whole and can be loaded."""
    target = models_dir / model_id
    if target.exists():
        load_artefact(target)
        return target
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        partial = models_dir / f".{model_id}.{secrets.token_hex(4)}"
        partial.mkdir()
        try:
            for name, data in content.items():
                (partial / name).write_bytes(data)
            load_artefact(partial)
            partial.rename(target)
        except BaseException:
            # Broad, a cancellation too: nothing half written is left.
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise NeedsPerson(f"cannot write the model to {target}: {error.strerror or error}") from None
    return target


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder alone, for lists; nothing else of it is checked. Raises NeedsPerson."""
    return _manifest(_read(path, MANIFEST))


def read_part(path: Path, name: str) -> bytes | None:
    """A file of a checked folder (report.json, psi.json), None where there is none."""
    return _read(path, name) if (path / name).exists() else None


def _load(path: Path) -> LoadedModel:
    if not path.is_dir():
        raise NeedsPerson("there is no such folder")
    content = _verified(path)
    for name in (MANIFEST, GOLDEN):
        if name not in content:
            raise NeedsPerson(f"{name} is not in {SUMS}")
    manifest = _manifest(content[MANIFEST])
    for head in (manifest.heads.long, manifest.heads.short):
        if head.file not in content:
            raise NeedsPerson(f"{head.file} is not in {SUMS}")
    if manifest.model_id != (expected := _model_id(manifest, content)):
        raise NeedsPerson(f"its id {manifest.model_id!r} does not fit its content, which makes {expected!r}")
    features = _features(manifest)
    _check_manifest(manifest)
    reference = read_reference(content[PSI], len(features)) if PSI in content else None
    model = LoadedModel(manifest, features, _Graphs(manifest, content), path, reference)
    _check_golden(model, content[GOLDEN])
    for rows in (1, 30, 1):  # the first calls of a size allocate, and shall not be a close
        model.predict(np.zeros((rows, len(features)), np.float32))
    return model


def _verified(path: Path) -> dict[str, bytes]:
    """Every file of SHA256SUMS by name, each read once."""
    sums: dict[str, str] = {}
    for line in _read(path, SUMS).decode("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9._-]{0,99})", line)
        if match is None:
            raise NeedsPerson(f"{SUMS} has a line that is no sum of a file in the folder: {line[:80]!r}")
        sums[match[2]] = match[1]
    if len(sums) > 100:
        raise NeedsPerson(f"{SUMS} names {len(sums)} files")
    content: dict[str, bytes] = {}
    for name in sums:
        content[name] = _read(path, name)
        if sum(map(len, content.values())) > MAX_FOLDER_BYTES:
            raise NeedsPerson(f"its files have more than {MAX_FOLDER_BYTES:,} bytes together")
    wrong = [name for name, data in content.items() if sha256(data).hexdigest() != sums[name]]
    if wrong:
        raise NeedsPerson(f"the content of {', '.join(sorted(wrong))} is not what {SUMS} says")
    return content


def _read(path: Path, name: str) -> bytes:
    try:
        # A link or a device could lead anywhere, or never end.
        status = os.lstat(path / name)
        if not stat.S_ISREG(status.st_mode):
            raise NeedsPerson(f"{name} is no plain file")
        if status.st_size > MAX_FILE_BYTES:
            raise NeedsPerson(f"{name} has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return (path / name).read_bytes()
    except OSError as error:
        raise NeedsPerson(f"cannot read {name}: {error.strerror or error}") from None


# ---- manifest ----


def _manifest_json(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def _manifest(data: bytes) -> Manifest:
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise NeedsPerson(f"{MANIFEST} is not a manifest of format {FORMAT}: {error}") from None


def _round_trip(manifest: Manifest) -> Manifest:
    """As it will be read back: what JSON cannot hold is found now."""
    try:
        return _manifest(_manifest_json(manifest))
    except (TypeError, ValueError) as error:
        raise NeedsPerson(f"the manifest cannot be written as JSON: {error}") from None


def _model_id(manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Made of everything but when it was written and what was in force then, so that the same training gives the same
    id."""
    values = msgspec.to_builtins(replace(manifest, model_id="", created_at=0, parent=None))
    heads = sorted({manifest.heads.long.file, manifest.heads.short.file})
    values["head_sums"] = {name: sha256(files[name]).hexdigest() for name in heads}
    digest = blake2b(msgspec.json.encode(values, order="deterministic"), digest_size=4).hexdigest()
    return f"{manifest.name}-{datetime.fromtimestamp(manifest.train.to / 1000, UTC):%Y%m%d}-{digest}"


def _features(manifest: Manifest) -> tuple[Feature, ...]:
    """The running catalogue's features under the manifest's names, if they are the ones it means."""
    known = {feature.name: feature for feature in CATALOGUE}
    differing = [
        difference for each in manifest.features if (difference := _difference(each, known.get(each.name))) is not None
    ]
    if differing:
        more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise NeedsPerson(f"its features are not this program's: {'; '.join(differing[:8])}{more}")
    names = [each.name for each in manifest.features]
    if len(set(names)) != len(names):
        raise NeedsPerson("its features name a column twice")
    features = tuple(known[name] for name in names)
    if (running := schema_hash(features)) != manifest.schema_hash:
        raise NeedsPerson(
            f"its schema hash {manifest.schema_hash} is not {running}, which its columns have here: "
            "their arithmetic or rules have changed; train it again"
        )
    return features


def _difference(wanted: ManifestFeature, here: Feature | None) -> str | None:
    if here is None:
        return f"{wanted.name} is unknown here"
    if wanted.version != here.version:
        return f"{wanted.name} has version {wanted.version}, here {here.version}"
    for name in ("lookback_min", "clip", "nan"):
        value = getattr(wanted, name)
        if value is not None and value != getattr(here, name):
            return f"{wanted.name} has {name} {value}, here {getattr(here, name)}"
    return None


def _check_manifest(manifest: Manifest) -> None:
    names = {each.name for each in manifest.features}
    if strange := [name for name in manifest.critical if name not in names]:
        raise NeedsPerson(f"critical names {', '.join(strange[:8])}, which is not among its features")
    for side, calibrator in (("long", manifest.calibrators.long), ("short", manifest.calibrators.short)):
        if calibrator is not None:
            x, y = np.array(calibrator.x), np.array(calibrator.y)
            if len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any() or y.min() < 0 or y.max() > 1:
                raise NeedsPerson(f"its calibrator {side} is no ascending line of probabilities")
    if manifest.ood is not None:
        for name in ("low", "high"):
            if len(getattr(manifest.ood, name)) != len(manifest.features):
                raise NeedsPerson(f"ood.{name} has not one bound for each of its {len(manifest.features)} features")
    rule = manifest.label
    if not (0 < rule.tp_pct < 100 and 0 < rule.sl_pct < 100 and rule.horizon_s > 0 and 0 <= rule.cost_bp < 10_000):
        raise NeedsPerson(f"its label is no exit rule: {rule}")
    if manifest.label_hash != (expected := label_hash(manifest.label)):
        raise NeedsPerson(f"its label hash {manifest.label_hash} is not {expected}, which its label makes here")


def _bounds(ood: Ood | None, count: int) -> tuple[Vectors, Vectors]:
    if ood is None:
        return np.full(count, -np.inf, np.float32), np.full(count, np.inf, np.float32)
    low = [-np.inf if bound is None else bound for bound in ood.low]
    high = [np.inf if bound is None else bound for bound in ood.high]
    return np.array(low, np.float32), np.array(high, np.float32)


# ---- graphs ----

_EXTERNAL_DATA = b"\x0a\x08location"
"""How a graph says that a weight lies in another file; such a file could be any of this machine."""


class _Graphs:
    """The graphs of a model, one session for each file."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self._sides = (manifest.heads.long, manifest.heads.short)
        self._sessions: dict[str, tuple[onnxruntime.InferenceSession, str]] = {}
        self._outputs: dict[str, list[str]] = {}
        for head in self._sides:
            if head.file not in self._sessions:
                self._sessions[head.file] = _session(head.file, files[head.file], len(manifest.features))
            wanted = self._outputs.setdefault(head.file, [])
            if head.output not in wanted:
                wanted.append(head.output)
        for name, (session, _) in self._sessions.items():
            there = {output.name: output.type for output in session.get_outputs()}
            for output in self._outputs[name]:
                if output not in there:
                    raise NeedsPerson(f"{name} has no output {output!r}, only {', '.join(there)}")
                if there[output] not in ("tensor(float)", "tensor(double)"):
                    raise NeedsPerson(
                        f"{name}: output {output!r} is {there[output]}, not a tensor (export without zipmap)"
                    )

    def run(self, vectors: Vectors) -> Probabilities:
        """float64 [n, 2]. Raises NeedsPerson for a graph that does not give a column of n numbers."""
        given: dict[tuple[str, str], NDArray[Any]] = {}
        for name, (session, input_name) in self._sessions.items():
            answers = session.run(self._outputs[name], {input_name: vectors})
            given |= {(name, output): answer for output, answer in zip(self._outputs[name], answers, strict=True)}
        return np.column_stack(
            [_column(given[head.file, head.output], head, len(vectors)) for head in self._sides]
        ).astype(np.float64)


def _session(name: str, data: bytes, count: int) -> tuple[onnxruntime.InferenceSession, str]:
    if _EXTERNAL_DATA in data:
        raise NeedsPerson(f"{name} keeps weights in other files")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the edge to ONNX Runtime, whose errors have no common base
        raise NeedsPerson(f"ONNX Runtime cannot load {name}: {_one_line(error)}") from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise NeedsPerson(f"{name} must have one input float32 [n, {count}], and has {found or 'none'}")
    rows, columns = inputs[0].shape
    if isinstance(rows, int) or (isinstance(columns, int) and columns != count):
        raise NeedsPerson(
            f"{name} takes {inputs[0].shape}, and the manifest has {count} features for any number of rows"
        )
    return session, inputs[0].name


def _column(answer: NDArray[Any], head: Head, rows: int) -> NDArray[Any]:
    if not isinstance(answer, np.ndarray) or len(answer) != rows or answer.ndim not in (1, 2):
        shape = getattr(answer, "shape", type(answer).__name__)
        raise NeedsPerson(f"{head.file}: output {head.output!r} gives {shape} for {rows} rows")
    table = answer if answer.ndim == 2 else answer[:, None]
    if head.column >= table.shape[1]:
        raise NeedsPerson(
            f"{head.file}: output {head.output!r} has {table.shape[1]} columns, none of number {head.column}"
        )
    column: NDArray[Any] = table[:, head.column]
    return column


def _calibrated(manifest: Manifest, raw: Probabilities) -> Probabilities:
    # Sums of float32 weights may pass 1 by a last digit, just where the model is surest.
    near = np.clip(raw, 0.0, 1.0)
    calibrated = np.where(np.abs(near - raw) < 1e-5, near, raw)
    for column, calibrator in enumerate((manifest.calibrators.long, manifest.calibrators.short)):
        if calibrator is not None:
            calibrated[:, column] = np.interp(calibrated[:, column], calibrator.x, calibrator.y)
    return calibrated


def _check_golden(model: LoadedModel, data: bytes) -> None:
    """The golden rows must give what they gave when the model was written, and probabilities where it may be asked."""
    golden = _golden(data, len(model.features))
    try:
        raw, calibrated = model.predict(golden["features"])
    except NeedsPerson:
        raise
    except Exception as error:  # the graph's own, whatever it is
        raise NeedsPerson(f"its golden rows cannot be computed: {_one_line(error)}") from None
    for name, now in (("raw", raw), ("calibrated", calibrated)):
        with np.errstate(invalid="ignore"):
            off = ~(
                (np.abs(now - golden[name]) <= TOLERANCE)
                | (now == golden[name])
                | (np.isnan(now) & np.isnan(golden[name]))
            )
        if off.any():
            row, side = divmod(int(off.argmax()), 2)
            raise NeedsPerson(
                f"{np.count_nonzero(off.any(axis=1))} of {len(now)} golden rows give other {name} outputs: "
                f"row {row} gives {now[row, side]!r} and should give {golden[name][row, side]!r}"
            )
    askable = np.all(np.isfinite(golden["features"][:, model.critical_columns]), axis=1)
    if not askable.any():
        raise NeedsPerson("none of its golden rows has all critical features")
    usable = np.all((calibrated >= 0) & (calibrated <= 1), axis=1)
    complete = np.all(np.isfinite(golden["features"]), axis=1)
    if not np.all(usable[complete]) or not np.any(usable[askable]):
        raise NeedsPerson("it gives no probabilities for golden rows that have all critical features")


_NO_ZIP = (
    *(OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, TypeError, SyntaxError, MemoryError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""All that zipfile and numpy raise for bytes that are no .npz: RuntimeError for an encrypted member, SyntaxError and
TypeError for a header that is no literal."""


def _golden(data: bytes, count: int) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(each.file_size for each in archive.infolist()) > MAX_FILE_BYTES:
                raise NeedsPerson(f"{GOLDEN} unpacks to more than {MAX_FILE_BYTES:,} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            golden = {name: arrays[name] for name in ("features", "raw", "calibrated")}
    except _NO_ZIP as error:
        raise NeedsPerson(f"{GOLDEN} cannot be read: {_one_line(error)}") from None
    rows = len(golden["features"]) if golden["features"].ndim else 0
    if not 0 < rows <= MAX_GOLDEN_ROWS:
        raise NeedsPerson(f"{GOLDEN} has {rows} rows: 1 to {MAX_GOLDEN_ROWS} are expected")
    for name, shape, dtype in (
        ("features", (rows, count), "f4"),
        ("raw", (rows, 2), "f8"),
        ("calibrated", (rows, 2), "f8"),
    ):
        if golden[name].shape != shape or golden[name].dtype != np.dtype(dtype):
            raise NeedsPerson(
                f"{name} in {GOLDEN} is {golden[name].dtype} {golden[name].shape}, and not {np.dtype(dtype)} {shape}"
            )
    return golden


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
