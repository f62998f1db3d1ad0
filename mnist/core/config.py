"""The schema of `params.yaml`: every key with its type and range, checked before anything runs.

The file is the only source of values: nothing here has a default. Sections are combined by
inheritance, so that a stage's `Params` is the list of the sections that it depends on.
"""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML, Node
from ruamel.yaml.constructor import ConstructorError, SafeConstructor

from mnist.core import files
from mnist.core.errors import InputError

S = TypeVar("S", bound="Section")

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "tf32", "bfloat16"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]+$")]

DATASET = "{dataset}"  # replaced by the data set's name in a mirror, and in the registered model's name
HIDDEN = "hidden"  # the type of a fault whose value is not shown
MAX_SHOWN = 200  # characters of a wrong value
MAX_VALUES = 100_000  # in a YAML file; dvc.lock has 200


def is_url(mirror: str) -> bool:
    """Return whether a mirror is a URL; otherwise it is a folder."""
    return bool(re.match("[a-z][a-z0-9+.-]*:", mirror, re.IGNORECASE))


def may_hold_secret(mirror: str) -> bool:
    """Return whether a mirror is a URL with a user, a query or a fragment."""
    return is_url(mirror) and bool(re.search("[@?#]", mirror))


def _without_secret(mirror: str) -> str:
    if may_hold_secret(mirror):
        expected = "a URL without a password, query or fragment; one with a secret goes in MNIST_MIRROR"
        raise PydanticCustomError(HIDDEN, expected)
    return mirror


Mirror = Annotated[str, AfterValidator(_without_secret)]  # params and data sets' files are in git and MLflow


class Section(BaseModel):
    """Frozen keys; an unknown, missing, mistyped or out-of-range one is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def only(self, wanted: type[S]) -> S:
        """Return the part of these params that `wanted` has."""
        return wanted.model_construct(**{name: getattr(self, name) for name in wanted.model_fields})


class DatasetParams(Section):
    """The data set."""

    # Of letters that MLflow, DVC and file systems allow.
    dataset: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Split(Section):
    """The split of the training images."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    val_size: Count  # images; fewer than there are to train on


class Architecture(Section):
    """The network."""

    model: Literal["simple_cnn", "mlp"]
    n_features: Annotated[int, Field(ge=1, le=1024)]  # channels of both convolutions
    permute_pixels: bool


class Recipe(Section):
    """The optimization."""

    epochs: Count
    batch_size: Count  # images
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]  # beta1 of adam
    beta2: Annotated[float, Field(ge=0, lt=1)]  # adam alone
    optimizer: Literal["sgd", "nesterov", "adam"]
    schedule: Literal["constant", "one_cycle"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    shift: Annotated[int, Field(ge=0, le=14)]  # pixels


class Machine(Section):
    """The device and its threads."""

    device: Literal["auto", "cpu", "cuda"]
    num_threads: Threads  # of each process


class Execution(Section):
    """The use of the machine for training."""

    precision: Precision
    deterministic: bool
    processes: Annotated[int, Field(ge=1, le=4096)]  # that share each batch


class Data(Section):
    """The source of the data set."""

    mirrors: list[Mirror]  # ahead of those of the data set's file

    def mirrors_of(self, dataset: str) -> list[str]:
        """Return the mirrors of this data set."""
        return [mirror.replace(DATASET, dataset) for mirror in self.mirrors]


class Registration(Section):
    """The name of the registered model."""

    model_name: Annotated[str, Field(pattern=r"^(\{dataset\}|[A-Za-z0-9])(\{dataset\}|[A-Za-z0-9 ._-])*$")]
    min_accuracy: Fraction

    def of(self, dataset: str) -> Self:
        """Return this section with the data set's name in the model's name."""
        return self.model_copy(update={"model_name": self.model_name.replace(DATASET, dataset)})


class Registry(Registration):
    """The conditions of registration and promotion."""

    alpha: Annotated[float, Field(gt=0, lt=1)]


class Params(DatasetParams, Split, Architecture, Recipe, Machine, Execution):
    """All of `params.yaml`."""

    checkpoint_epochs: Annotated[int, Field(ge=0)]  # between two; it determines no byte: no stage lists it
    data: Data
    registry: Registry

    @property
    def model_name(self) -> str:
        """Return the name of the registered model for this data set."""
        return self.registry.of(self.dataset).model_name


def load(path: Path) -> Params:
    """Read and check the whole of `params.yaml`.

    Raises:
        InputError: one message that names every key at fault, with what was found and expected.
    """
    return check(Params, read(path, expected="the pipeline's params"), str(path))


def read(path: Path, *, expected: str) -> Any:
    """Return what a YAML file holds, numbers as DVC reads them (YAML 1.2); `expected` names that.

    Raises:
        InputError: the file cannot be read, or is not YAML.
    """
    with files.reading(path, expected):
        return parse(path.read_bytes(), str(path))


def parse(document: bytes | str, where: str) -> Any:
    """Return what YAML holds, read by the parser and the settings of DVC itself (dvc.utils.serialize).

    PyYAML would read `1e-05`, which is what DVC writes for `-S lr=1e-5`, as a string.

    Raises:
        InputError: it is not YAML; `where` names it.
    """
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        return yaml.load(document.decode() if isinstance(document, bytes) else document)
    except RecursionError:
        reason = "nested too deeply"
    except Exception as error:  # noqa: BLE001 -- KeyError of `!!bool x`, ValueError of 2024-13-45, and others
        mark = getattr(error, "problem_mark", None)
        text = getattr(error, "problem", None) or str(error).partition("\n")[0]
        reason = f"line {mark.line + 1}: {text}" if mark else text
    raise InputError(where, found=f"no YAML ({reason})", expected="keys and values")


class _Constructor(SafeConstructor):
    """A constructor that refuses aliases of aliases: a small file could hold more values than memory does."""

    def construct_document(self, node: Node) -> Any:
        if _num_values(node, {}) > MAX_VALUES:
            raise ConstructorError(problem=f"more than {MAX_VALUES:,} values", problem_mark=node.start_mark)
        return super().construct_document(node)


def _num_values(node: Node, counted: dict[int, int]) -> int:
    """Return the number of values in a node with its aliases; too many for one that contains itself."""
    if id(node) not in counted:
        counted[id(node)] = MAX_VALUES + 1
        inner = node.value if isinstance(node.value, list) else []
        nodes = [one for entry in inner for one in (entry if isinstance(entry, tuple) else (entry,))]
        counted[id(node)] = 1 + sum(_num_values(one, counted) for one in nodes)
    return counted[id(node)]


def read_keys(folder: Path, name: Path) -> dict[str, Any]:
    """Return the keys and values of the YAML file `name` in `folder`; none where there is no such file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    path = folder / name
    with files.reading(path, "keys and values"):
        return parse_keys(path.read_bytes(), str(name)) if path.exists() else {}


def parse_keys(document: bytes | str, where: str) -> dict[str, Any]:
    """Return the keys and values of YAML; none of an empty document.

    Raises:
        InputError: it holds something else; `where` names it.
    """
    values = parse(document, where)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(where, found=type(values).__name__, expected="keys and values")
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones; an empty section is a value."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        dotted |= inner or {f"{prefix}{key}": value}
    return dotted


def check(section: type[S], values: Any, where: str) -> S:
    """Make a section of untrusted `values`; `where` names their source in the error.

    Raises:
        InputError: as `load`.
    """
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise InputError(where, found=found, expected="keys and values")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _as_input_error(error, where, known=_keys(section)) from None


def _as_input_error(error: ValidationError, where: str, known: list[str]) -> InputError:
    faults = []
    for fault in error.errors(include_url=False):
        key = " ".join(".".join(str(part) for part in fault["loc"] if part != "[key]").split())
        found, expected = f"{fault['input']!r}"[:MAX_SHOWN], fault["msg"].removeprefix("Input should be ")
        if fault["type"] == "missing":
            found, expected = "nothing", "a value"
        elif fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, known, n=1)
            found = "a key that nothing reads"
            expected = f"{close[0]!r}, perhaps" if close else "only known keys"
        elif fault["type"] == HIDDEN:
            found = "a URL that may hold a secret"
        faults.append((key, found, expected))
    (key, found, expected), *others = faults
    more = "".join(f"; {key}: found {found}, expected {expected}" for key, found, expected in others)
    return InputError(f"{where}: {key}", found=found, expected=expected + more)


def _keys(section: type[Section]) -> list[str]:
    """Return the dotted names of all keys of a section and of its sections."""
    names = []
    for name, field in section.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names += [f"{name}.{inner}" for inner in _keys(field.annotation)]
    return names


def as_typed(value: Any) -> str:
    """Return a param's value as one types it after `-S key=`; a dash for a key that is not there."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
