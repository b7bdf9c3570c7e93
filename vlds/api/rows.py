"""Rows: what a run has logged, predicted or answered, as a list of dicts that a notebook shows as a
table with pictures and pandas takes as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Protocol,
    SupportsIndex,
    TypeAlias,
    overload,
    runtime_checkable,
)

from markupsafe import Markup, escape

from vlds.data.shards.pictures import page_picture, thumbnail
from vlds.runtime.files import read_file
from vlds.runtime.terminal import visible

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-not-found, import-untyped, unused-ignore]

Row: TypeAlias = dict[str, object]
PICTURE = "picture"
"""The column that a table shows as pictures: a path or the bytes of a file, or a list of them."""
MOST_SHOWN = 100
"""Rows that a notebook shows."""
LONGEST_SHOWN = 300
"""Characters of a value that a notebook shows."""
DIGITS = 4
# Colours follow the notebook's theme: none is set but the lines', which fit light and dark.
STYLE = Markup(
    "<style>.vlds table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    ".vlds th,.vlds td{padding:.3em .7em;text-align:left!important;vertical-align:top;"
    "border-bottom:1px solid #8886;overflow-wrap:anywhere;max-width:24em}"
    ".vlds td.number,.vlds th.number{text-align:right!important}"
    ".vlds img{max-width:120px;max-height:120px;margin:0 .2em 0 0;display:inline-block}"
    ".vlds img.tiny{min-width:96px;image-rendering:pixelated}"
    ".vlds .note{opacity:.7}</style>"
)


@runtime_checkable
class HasRow(Protocol):
    """What has a row of its own, such as an answer."""

    def row(self) -> Row:
        """Name of a column -> value."""


class Rows(list[Row]):
    """A list of dicts. A notebook shows it as a table, and `to_pandas` makes a DataFrame of it.

    vlds.Rows(model.answer_many(questions)) has a row for each answer; `run.metrics[-20:]`
    are the newest twenty. A column called "picture" is shown as pictures: a path, the bytes of a
    file, or a list of these.
    """

    def __init__(self, rows: Iterable[Mapping[str, object] | HasRow] = ()) -> None:
        """Errors: ValueError for what is neither a mapping nor an answer."""
        if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
            raise ValueError(
                f"rows: got {type(rows).__name__}; give a list or iterator of dicts or answers"
            )
        super().__init__(_row(number, row) for number, row in enumerate(rows))

    @overload
    def __getitem__(self, key: SupportsIndex) -> Row: ...

    @overload
    def __getitem__(self, key: slice) -> Rows: ...

    def __getitem__(self, key: SupportsIndex | slice) -> Row | Rows:
        """A row, or a stretch of rows that is shown as a table too."""
        return (
            Rows(super().__getitem__(key)) if isinstance(key, slice) else super().__getitem__(key)
        )

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order in which rows bring them."""
        return list(dict.fromkeys(name for row in self for name in row))

    def to_pandas(self) -> DataFrame:
        """A DataFrame with these rows; values that a row lacks are missing.

        Errors: ValueError if pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ValueError(
                "to_pandas: pandas is not installed; `pip install pandas`, or use the rows as the "
                "list of dicts that they are"
            ) from None
        return pandas.DataFrame.from_records(list(self), columns=self.columns)

    def _repr_html_(self) -> str:
        # Without columns in which no row has a value.
        shown = [c for c in self.columns if any(row.get(c) is not None for row in self)]
        return table(self[:MOST_SHOWN], shown, left_out=len(self) - MOST_SHOWN)


def _row(number: int, row: Mapping[str, object] | HasRow) -> Row:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, HasRow):
        return row.row()
    raise ValueError(f"rows: number {number} is {type(row).__name__}; give dicts or answers")


def table(rows: Iterable[Row], columns: Iterable[str], left_out: int = 0) -> Markup:
    """Rows as HTML, in which no text becomes markup."""
    rows, columns = list(rows), list(columns)
    # A column of numbers stands flush right.
    numeric = {
        name
        for name in columns
        if any(name in row for row in rows)
        and all(isinstance(row.get(name), int | float | None) for row in rows)
    }
    note = Markup('<p class="note">and {} more rows</p>').format(f"{left_out:,}")
    return Markup('{}<div class="vlds"><table><tr>{}</tr>{}</table>{}</div>').format(
        STYLE,
        Markup().join(
            _cell("th", name, name in numeric, escape(visible(name))) for name in columns
        ),
        Markup().join(
            Markup("<tr>{}</tr>").format(
                Markup().join(
                    _cell("td", name, name in numeric, value_html(name, row.get(name)))
                    for name in columns
                )
            )
            for row in rows
        ),
        note if left_out > 0 else "",
    )


def _cell(tag: str, name: str, is_number: bool, content: Markup) -> Markup:
    kind = Markup(' class="number"') if is_number else ""
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), kind, content)


def value_html(name: str, value: object) -> Markup:
    """A value of a column as HTML."""
    if name == PICTURE:
        parts = value if isinstance(value, list | tuple) else [value]
        return Markup().join(map(picture_html, parts))
    if value is None:
        return Markup("")
    if isinstance(value, float):
        return escape(f"{value:.{DIGITS}g}")
    text = visible(value)
    return escape(text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "\u2026")


def picture_html(picture: object) -> Markup:
    """A small copy of a picture, or why there is none."""
    if picture is None:
        return Markup("")
    data = picture if isinstance(picture, bytes) else None
    if isinstance(picture, str | Path):
        try:
            data = read_file(Path(picture))
        except (OSError, ValueError):
            return Markup('<span class="note">{} is gone</span>').format(visible(picture))
    small = None if data is None else thumbnail(data)
    shown = None if small is None else page_picture(small)
    if shown is None:
        return Markup('<span class="note">not a picture</span>')
    name = visible(picture) if isinstance(picture, str | Path) else ""
    kind = Markup(' class="tiny"') if shown.tiny else ""
    return Markup('<img{} src="{}" alt="{}">').format(kind, shown.url, name)


def small_copy(data: bytes) -> bytes:
    """What a table keeps of a picture that is not a file: a small copy, or else the picture."""
    return thumbnail(data) or data
