"""What pages for people have in common: the templates, how pictures are in them, how numbers are written."""

import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mnist.data.store import Bytes


def render(template: Path, **values: Any) -> str:
    """Fill in a template, escaped for HTML; a name that it has and `values` has not is a fault of ours."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def picture(image_HW: Bytes) -> str:
    """An image, uint8 (H, W), as the data URI of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image_HW).save(stream, format="png", optimize=True)
    return data_uri(stream.getvalue())


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def as_yaml(value: object) -> str:
    """A param as `params.yaml` has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def percent(share: float | None, decimals: int = 2) -> str:
    """A share as people read it; in words where there is none."""
    return "none" if share is None else f"{100 * share:.{decimals}f}\u00a0%"


def span(interval: tuple[float, float] | None, decimals: int = 2, *, factor: float = 100) -> str:
    """An interval of shares in percent; of other numbers with a `factor` of 1."""
    if interval is None:
        return "none"
    low, high = (f"{factor * limit:.{decimals}f}" for limit in interval)
    return f"{low} to {high}\u00a0%" if factor == 100 else f"{low} to {high}"  # noqa: PLR2004 -- percent


def time(time_ms: int) -> str:
    """A moment, given in milliseconds since 1970, in UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
