"""What `params.yaml` may hold: every key with its type and range, checked before anything runs.

The file is the only source of values: nothing here has a default. Sections are combined by
inheritance, so that a stage's `Params` is the list of the sections that it depends on.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mnist.errors import InputError

S = TypeVar("S", bound="Section")

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "tf32", "bfloat16"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]+$")]


class Section(BaseModel):
    """A frozen set of keys; unknown, missing, mistyped and out-of-range ones are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def only(self, wanted: type[S]) -> S:
        """The part of these params that `wanted` has, already checked."""
        return wanted.model_construct(**{name: getattr(self, name) for name in wanted.model_fields})


class Split(Section):
    """How the 60,000 training images are cut."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    val_size: Annotated[int, Field(ge=1, lt=60_000)]  # images


class Architecture(Section):
    """What the network is."""

    model: Literal["simple_cnn", "mlp"]
    n_features: Annotated[int, Field(ge=1, le=1024)]  # channels of both convolutions
    permute_pixels: bool


class Recipe(Section):
    """How the network is trained."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=1, le=60_000)]  # images
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]  # beta1 of adam
    beta2: Annotated[float, Field(ge=0, lt=1)]  # adam alone
    optimizer: Literal["sgd", "nesterov", "adam"]
    schedule: Literal["constant", "one_cycle"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    shift: Annotated[int, Field(ge=0, le=14)]  # pixels


class Machine(Section):
    """What it runs on."""

    device: Literal["auto", "cpu", "cuda"]
    num_threads: Threads  # of each process


class Execution(Section):
    """How the machine is used to train."""

    precision: Precision
    deterministic: bool
    processes: Annotated[int, Field(ge=1, le=4096)]  # that share each batch


class Checksums(Section):
    """Of one downloaded archive."""

    md5: Annotated[Digest, Field(min_length=32, max_length=32)]
    sha256: Annotated[Digest, Field(min_length=64, max_length=64)]


class Data(Section):
    """Where the data set comes from."""

    mirrors: Annotated[list[str], Field(min_length=1)]
    checksums: Annotated[
        dict[
            Literal[
                "train-images-idx3-ubyte.gz",
                "train-labels-idx1-ubyte.gz",
                "t10k-images-idx3-ubyte.gz",
                "t10k-labels-idx1-ubyte.gz",
            ],
            Checksums,
        ],
        Field(min_length=4),
    ]


class Share(Section):
    """A closed interval of fractions."""

    min: Fraction
    max: Fraction

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.min > self.max:
            raise PydanticCustomError("empty_interval", "min at most max")
        return self


class Validation(Section):
    """The bounds that the data must keep."""

    num_train: Count  # images
    num_test: Count  # images
    class_share: Share  # of each digit in its split
    mean: Share  # of all pixels of a split, black 0 to white 1
    image_mean: Share  # of one image's pixels
    darkest: Share  # one image's darkest pixel
    brightest: Share  # one image's brightest pixel
    ink: Share  # share of one image's pixels that are not black
    max_duplicates: Annotated[int, Field(ge=0)]  # images equal to an earlier one of their split


class Registration(Section):
    """What is registered."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
    min_accuracy: Fraction


class Registry(Registration):
    """What is registered, and what is promoted."""

    alpha: Annotated[float, Field(gt=0, lt=1)]


class Params(Split, Architecture, Recipe, Machine, Execution):
    """The whole file."""

    data: Data
    validation: Validation
    registry: Registry


def load(path: Path) -> Params:
    """Read and check the whole of `params.yaml`, numbers as DVC reads them (YAML 1.2).

    Raises:
        InputError: one message that names every key at fault, with what was found and expected.
    """
    try:
        # The parser and the settings of DVC itself (dvc.utils.serialize): PyYAML would read
        # `1e-05`, which is what DVC writes for `-S lr=1e-5`, as a string.
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(path), found="no such file", expected="the pipeline's params") from None
    except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or no such day as 2024-13-45
        reason = " ".join(str(error).split())
        raise InputError(str(path), found=f"no YAML ({reason})", expected="keys and values") from None
    return check(Params, values, str(path))


def check(section: type[S], values: Any, where: str) -> S:
    """Make a section of untrusted `values`; `where` names their source in the error.

    Raises:
        InputError: as `load`.
    """
    if not isinstance(values, dict):
        raise InputError(where, found=type(values).__name__, expected="keys and values")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _as_input_error(error, where, known=_keys(section)) from None


def _as_input_error(error: ValidationError, where: str, known: list[str]) -> InputError:
    faults = []
    for fault in error.errors(include_url=False):
        key = " ".join(".".join(str(part) for part in fault["loc"] if part != "[key]").split())
        found, expected = f"{fault['input']!r}", fault["msg"].removeprefix("Input should be ")
        if fault["type"] == "missing":
            found, expected = "nothing", "a value"
        elif fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, known, n=1)
            found = "a key that nothing reads"
            expected = f"{close[0]!r}, perhaps" if close else "only known keys"
        faults.append((key, found, expected))
    (key, found, expected), *others = faults
    more = "".join(f"; {key}: found {found}, expected {expected}" for key, found, expected in others)
    return InputError(f"{where}: {key}", found=found, expected=expected + more)


def _keys(section: type[Section]) -> list[str]:
    """The dotted names of all keys of a section and of the sections in it."""
    names = []
    for name, field in section.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names += [f"{name}.{inner}" for inner in _keys(field.annotation)]
    return names
