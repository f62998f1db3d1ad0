"""The checkpoint of a training: what its next epoch depends on, and its events so far.

A training that was killed goes on after the last checkpoint, and ends with the bytes of one that was never
interrupted. The file is found by a digest of all that determines those bytes, and removed when the training
is done. It is a safetensors file with JSON in its header.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence

from filelock import FileLock, Timeout
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnist.core import files, paths
from mnist.core.config import Section
from mnist.core.errors import InputError
from mnist.training.distributed import Context
from mnist.training.history import Epoch, Window

HEADER = "checkpoint"  # the one key of the file's header
BLANK = "0" * 64  # in place of the file's own digest while it is computed
GENERATOR = "generator"  # a tensor beside those of the optimizer
ABANDONED_SECONDS = 7 * 24 * 3600  # after which nobody resumes a training


class Progress(Section, frozen=False, arbitrary_types_allowed=True):
    """A training after some epochs: `loop.fit` starts from it, and updates it before it yields an epoch.

    Attributes:
        epoch: number of finished epochs.
        events: so far.
        seconds: of training so far.
        time_ms: of its start, since 1970.
        tensors: state of the optimizer and the generator, by name; the next step changes them.
        training: digest of what determines the bytes of the training.
        sha256: of the file, with `BLANK` in this place.
    """

    epoch: int = 0
    events: list[Window | Epoch] = Field(default_factory=list)
    seconds: float = 0.0
    time_ms: int = Field(default_factory=lambda: time.time_ns() // 1_000_000)
    tensors: dict[str, Tensor] = Field(default_factory=dict, exclude=True)
    training: str = ""
    sha256: str = BLANK


class Checkpoint:
    """The checkpoint of a training, which rank 0 reads and writes, and one training at a time.

    Args:
        origin: what determines the bytes of the training: its fingerprint, device and versions.
        num_epochs: of the training.
        every: number of epochs between two checkpoints; 0 neither writes nor reads one.
        ctx: the place of this process.

    Attributes:
        progress: what is stored, the same in every process; a new one where that is nothing. A file that is
            damaged, or of another training, is ignored with one line.
    """

    def __init__(self, origin: Sequence[object], *, num_epochs: int, every: int, ctx: Context) -> None:
        self._training = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        self._file = paths.root() / paths.CHECKPOINTS / self._training / "checkpoint.safetensors"
        self._lock = FileLock(self._file.with_name("lock"), blocking=False)
        self._num_epochs, self._every = num_epochs, every
        content = ctx.broadcast(self._read() if every and ctx.rank == 0 else b"")
        self.progress = unpack(content, self._training) if content else Progress(training=self._training)
        self._epoch = self.progress.epoch  # the last one that `save` has seen

    def _read(self) -> bytes:
        """Reserve the checkpoint for this process, remove abandoned ones, and return its content."""
        folder = self._file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
            is_held = isinstance(error, Timeout)
            print(f"train: no checkpoint: {'another process runs this training' if is_held else error}")
            self._every = 0
            return b""
        for old in files.abandoned(folder.parent.iterdir(), ABANDONED_SECONDS):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        if not self._file.is_file():
            return b""
        try:
            content = self._file.read_bytes()
            unpack(content, self._training)
        except (InputError, OSError) as error:
            print(f"train: a checkpoint is ignored: {error}")
            return b""
        return content

    def save(self) -> None:
        """Write the progress if an epoch has just ended and that is due; to be called at each event.

        A disk that is full costs a line. After the last epoch there is nothing to resume.
        """
        epoch, is_new = self.progress.epoch, self.progress.epoch != self._epoch
        self._epoch = epoch
        if not is_new or epoch == self._num_epochs or self._every == 0 or epoch % self._every:
            return
        try:
            with files.replacing(self._file) as part:
                part.write_bytes(pack(self.progress))
        except (InputError, OSError) as error:
            print(f"train: no checkpoint: {error}")
            self._every = 0

    def remove(self) -> None:
        """Remove the checkpoint of a training that is done."""
        if self._lock.is_locked:
            shutil.rmtree(self._file.parent, ignore_errors=True)
            self._lock.release()


def pack(progress: Progress) -> bytes:
    """Return the content of a checkpoint."""
    tensors = {name: tensor.cpu() for name, tensor in progress.tensors.items()}
    content = save(tensors, {HEADER: progress.model_dump_json()})
    return content.replace(BLANK.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def unpack(content: bytes, training: str) -> Progress:
    """Return the progress of a training, by its digest, in the content of a checkpoint.

    Raises:
        InputError: it is damaged, or of another training.
    """
    try:
        end = 8 + int.from_bytes(content[:8], "little")  # of the header, in safetensors' format
        progress = Progress.model_validate_json(json.loads(content[8:end])["__metadata__"][HEADER])
        blank = content.replace(progress.sha256.encode(), BLANK.encode(), 1)
        if hashlib.sha256(blank).hexdigest() != progress.sha256:
            raise ValueError("its digest differs")  # noqa: TRY301 -- one of many faults
        if progress.training != training:
            raise ValueError("it is of another training")  # noqa: TRY301
        progress.sha256, progress.tensors = BLANK, load(content)
    except (ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError("a checkpoint", found=reason, expected="what `train` wrote") from None
    return progress
