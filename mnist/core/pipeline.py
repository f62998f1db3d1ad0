"""The stages of a checkout, as `dvc.yaml` lists them: read without DVC, whose import takes half a second.

`mnist.lineage.fingerprint` reads the deps of two commits in a way of its own, for a patch.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mnist.core import config, paths
from mnist.core.errors import InputError

TEMPLATE = re.compile(r"\$\{\s*(.+?)\s*\}")
Entry = str | Annotated[dict[str, Any], Field(min_length=1)]  # a path, or its settings by path


class Stage(config.Section, extra="ignore"):
    """What `dvc.yaml` lists for a stage; None for a key without a value."""

    cmd: Any = None
    deps: list[str] | None = None
    params: list[str | dict[str, list[str] | None]] | None = None
    outs: list[Entry] | None = None
    metrics: list[Entry] | None = None
    plots: list[Entry] | None = None

    @property
    def made(self) -> list[str]:
        """Return the paths of all that the stage writes."""
        entries = [*(self.outs or []), *(self.metrics or []), *(self.plots or [])]
        return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


class _File(config.Section, extra="ignore"):
    stages: dict[str, Stage] = Field(default_factory=dict)


class Pipeline:
    """The stages of the checkout in `folder`, with params in the place of DVC's templates, `${key}`.

    A template of anything else (`vars`, `foreach`) stays as it is.

    Attributes:
        stages: by name.
        makers: the names of the stages by the paths that they write.

    Raises:
        InputError: `dvc.yaml` is malformed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._values = config.flat(config.read_keys(folder, paths.PARAMS))
        content = self._filled(config.read_keys(folder, paths.PIPELINE))
        self.stages = config.check(_File, content, str(paths.PIPELINE)).stages
        self.makers = {out: name for name, stage in self.stages.items() for out in stage.made}

    def _filled(self, content: Any) -> Any:
        if isinstance(content, dict):
            return {self._filled(key): self._filled(value) for key, value in content.items()}
        if isinstance(content, list):
            return [self._filled(value) for value in content]
        if isinstance(content, str):
            return TEMPLATE.sub(lambda key: config.as_typed(self._values.get(key[1], key[0])), content)
        return content

    def deps(self, stage: str) -> list[str]:
        """Return the paths of what a stage reads; none of a stage that is not there."""
        return self.stages.get(stage, Stage()).deps or []

    def params(self, stage: str) -> dict[str, Any]:
        """Return the params that a stage depends on, by dotted keys; of another file by `<file>:<key>`.

        Raises:
            InputError: there is no such file, or no such key; a section stands for all that is in it.
        """
        found: dict[str, Any] = {}
        for entry in self.stages.get(stage, Stage()).params or []:
            named = entry if isinstance(entry, dict) else {str(paths.PARAMS): [entry]}
            for file, keys in named.items():
                values, prefix = self._values, ""
                if file != str(paths.PARAMS):
                    values, prefix = config.flat(config.read_keys(self.folder, Path(file))), f"{file}:"
                for key in keys or [""]:  # "": all of the file
                    of_key = [name for name in values if not key or f"{name}.".startswith(f"{key}.")]
                    if not of_key and (key or not (self.folder / file).is_file()):
                        missing, expected = f"no {key or 'such file'}", f"the params that stage {stage} lists"
                        raise InputError(file, found=missing, expected=expected)
                    found |= {f"{prefix}{name}": values[name] for name in of_key}
        return found
