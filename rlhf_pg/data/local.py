"""Read local files as rows: JSON, parquet, csv, and folders that `datasets` saved. Nothing in them is ever run.

Pickles and programs are no kind of data here.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from rlhf_pg.data import jsonl
from rlhf_pg.data.files import is_saved, splits_of
from rlhf_pg.data.rows import Rows

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_file(path: Path, split: str) -> Rows:
    """Return the rows of one file or saved data set, of which `split` is read if it has several.

    Raises ValueError naming the file, and the line where there are lines, for what cannot be read.
    """
    readers = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
        ".csv": _read_csv,
        ".tsv": _read_csv,
    }
    try:
        if is_saved(path):
            return _read_saved(path, split)
        kind = kind_of(path)
        if kind not in readers or (kind == ".parquet" and path.suffix.lower() == ".gz"):
            raise ValueError(
                f"{path}: unknown kind of file {path.suffix!r}; use {', '.join(readers)}, each but parquet also with "
                ".gz behind it, or a folder that datasets' save_to_disk wrote"
            )
        return readers[kind](path)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def kind_of(path: Path) -> str:
    """Return the ending that says how a file is read: ".jsonl" of "a.jsonl" and of "A.JSONL.gz"."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def opened(path: Path) -> Any:
    """Open a file for reading bytes, unpacked if its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def rows_of_dataset(dataset: Any, source: str) -> Rows:
    """Return the rows of a `datasets.Dataset` as Python values; 32-bit floats as the decimals they were written as."""
    from pyarrow import types

    plain = dataset.with_format(None)
    rows = [dict(row) for row in plain]
    table = dataset.with_format("arrow")
    for name, feature in dataset.features.items():
        if getattr(feature, "dtype", "") == "float32" and types.is_float32(feature.pa_type):
            _set_decimals(rows, name, table[:][name])
    return Rows(rows, source)


def _read_jsonl(path: Path) -> Rows:
    with opened(path) as file:
        rows = dict(jsonl.read_jsonl(file, path))
    return Rows(list(rows.values()), str(path), list(rows))


def _read_json(path: Path) -> Rows:
    with opened(path) as file:
        rows = jsonl.parse(file.read(), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of objects is needed, this is a {type(rows).__name__}")
    return Rows([jsonl.as_object(row, f"{path}, row {i}") for i, row in enumerate(rows)], str(path))


def _read_parquet(path: Path) -> Rows:
    from pyarrow import ArrowException, types
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
        rows = table.to_pylist()
        for column in table.schema:
            if types.is_float32(column.type):
                _set_decimals(rows, column.name, table[column.name])
        return Rows(rows, str(path))
    except (ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error


def _set_decimals(rows: list[dict[str, Any]], name: str, values: Any) -> None:
    """Set a column to its 32-bit floats as written: 0.1 is 0.1, not the 0.10000000149011612 of 64 bits."""
    from pyarrow import string

    for row, text in zip(rows, values.cast(string()).to_pylist(), strict=True):
        row[name] = None if text is None else float(text)


def _read_saved(folder: Path, split: str) -> Rows:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ValueError(f"{folder}: the package `datasets` cannot be imported ({error}); install it") from error
    splits = splits_of(folder)
    if splits and split not in splits:
        raise ValueError(
            f"{folder}: no split {split!r}; it has {', '.join(splits)}. Name one (data.*.split), or the folder of one, "
            f"such as {folder / splits[0]}"
        )
    place = folder / split if splits else folder
    try:
        return rows_of_dataset(load_from_disk(str(place)), str(place))
    except Exception as error:  # whatever a damaged file leads datasets and pyarrow to
        raise ValueError(
            f"{place}: cannot be read as a saved data set ({type(error).__name__}: {error}); save it again by "
            "save_to_disk"
        ) from error


def _read_csv(path: Path) -> Rows:
    """Read text cells: nothing in them is taken for a number. An empty cell is a missing value, None."""
    with opened(path) as file:
        text = _decoded(file.read(), path)
    separator = SEPARATORS[kind_of(path)]
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        return _csv_rows(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), path)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(reader: Any, path: Path) -> Rows:
    rows, lines, empty, columns, line = [], [], Counter[str](), [], 0
    while True:
        line = reader.line_num + 1  # where the next row begins: a cell may have line ends in it
        try:
            cells = next(reader)
        except StopIteration:
            return Rows(rows, str(path), lines, empty)
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: not valid {path.suffix.lower()[1:]} ({error})") from error
        if not cells:  # a blank line
            continue
        if not columns:
            columns = _header(cells, f"{path}:{line}")
            continue
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}:{line}: {len(cells)} cell{'s' * (len(cells) > 1)}, and the header has {len(columns)} columns; "
                "a cell with a separator in it has to be in quotes"
            )
        empty.update(name for name, cell in zip(columns, cells, strict=True) if not cell)
        rows.append({name: cell or None for name, cell in zip(columns, cells, strict=True)})
        lines.append(line)


def _header(cells: list[str], where: str) -> list[str]:
    """Return the names of the columns. Raises ValueError for one that appears twice, and for other separators."""
    repeated = next((name for i, name in enumerate(cells) if name in cells[:i]), None)
    if repeated is not None:
        raise ValueError(f"{where}: column {repeated!r} appears twice")
    if len(cells) == 1 and any(mark in cells[0] for mark in ",;\t|"):
        raise ValueError(
            f"{where}: one column, {cells[0]!r}: cells are separated by commas in a .csv file, by tabs in a .tsv file"
        )
    return cells


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason}); save it as UTF-8") from error
