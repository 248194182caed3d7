"""One column of a file: read with the very values that it holds, or refused with the cause."""

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import environment

from sinlstm_dist.data import read_values
from sinlstm_dist.data.reading import Column, read_column
from sinlstm_dist.errors import ConfigError


def write(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path, column: str = "", **keywords: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_column(path, column, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# text, column, values; "" as the column where the reader has to find it
READ = {
    "pandas' index": (",value\n0,1.5\n1,2.5\n2,4.5\n", "", [1.5, 2.5, 4.5]),
    "pandas' index, by name": (",value\n0,1.5\n1,2.5\n", "value", [1.5, 2.5]),
    "pandas' index, read and written again": ("Unnamed: 0,v\n4,1\n2,7\n", "", [1, 7]),
    "pandas' series without a name": (",0\n0,1.5\n1,2.5\n", "", [1.5, 2.5]),
    "pandas' series without a name, named": (",0\n0,1.5\n1,2.5\n", "0", [1.5, 2.5]),
    "R's row names": ('"","x"\n"1",4\n"2",9\n', "", [4, 9]),
    "R's row names, some left out": ('"","x"\n"4",4\n"9",9\n', "", [4, 9]),
    "R's columns without names": ('"","1","2"\n"1",5,7\n"2",6,8\n', "2", [7, 8]),
    "R's time series": ('"","time","CO2"\n"1",1959,315.4\n"2",1959.5,316\n', "", [315.4, 316]),
    "a counting column": ("t,v\n0,5\n1,3\n2,5\n", "", [5, 3, 5]),
    "a counting column alone": ("v\n1\n2\n3\n", "", [1, 2, 3]),
    "a counting column that is asked for": ("t,v\n0,5\n1,3\n", "t", [0, 1]),
    "dates for an index": (",level\n2020-01-01,1.5\n2020-01-02,2.5\n", "", [1.5, 2.5]),
    "a column of words": ("day,v\nmonday,5\ntuesday,7.5\n", "", [5, 7.5]),
    "blank first lines": ("\n \nvalue\n1\n2\n", "value", [1, 2]),
    "blank last lines": ("value\n1\n2\n\n \n\n", "value", [1, 2]),
    "comments": ("# theirs, 2\n#\na,b\n1,2\n", "b", [2]),
    "sep= for decimal commas alone": ("sep=;\nv\n1,5\n2,25\n", "", [1.5, 2.25]),
    "Excel's sep=": ("sep=;\nTag, Zeit;Wert\na;1.5\nb;2.5\n", "Wert", [1.5, 2.5]),
    "a bar": ("a|b\n1|2\n", "b", [2]),
    "blanks": ("# co2\n 1958  4   315.70\n 1958  5   317.45\n", "3", [315.7, 317.45]),
    "a header with the other separator": (
        "Zeit;T, °C\n01.01.;1,5\n02.01.;2,7\n",
        "T, °C",
        [1.5, 2.7],
    ),
    "a separator that the first lines leave open": ("a,b;c\n1,2;3\n4,5;6,7\n", "c", [3, 6.7]),
    "decimal commas": ("a;b\nx;1,5\ny;-,25\nz;3\n", "b", [1.5, -0.25, 3]),
    "decimal commas in quotes": ('b\n"1,5"\n"1,234"\n', "b", [1.5, 1.234]),
    "decimal commas below one": ("a;b\nx;0,125\ny;0,250\n", "b", [0.125, 0.25]),
    "exponents, signs and points": ("v\n1e3\n+.5\n-2.\n1E-2\n", "v", [1000, 0.5, -2, 0.01]),
    "three decimals everywhere, commas between the cells": (
        "t,v\n1.000,12.500\n2.000,-1.250\n",
        "v",
        [12.5, -1.25],
    ),
    "three decimals, some below one": ("v\n0.125\n12.500\n3\n", "v", [0.125, 12.5, 3]),
    "three decimals and two": ("a;v\nx;1.015\ny;1.05\n", "v", [1.015, 1.05]),
    "three decimals after four digits": ("a;v\nx;1.015\ny;1015.125\n", "v", [1.015, 1015.125]),
    "three decimals in an exponent's number": ("a;v\nx;1.015\ny;1.015e3\n", "v", [1.015, 1015]),
    "CR LF": ("a,v\r\nx,1\r\ny,2\r\n", "v", [1, 2]),
    "CR": ("a,v\rx,1\ry,2\r", "v", [1, 2]),
    "quoted names with blanks around": ('"a" ; "v"\nx; 1\ny ;2 \n', "v", [1, 2]),
    "a line break in quotes": ('n,v\n"a\nb",1\nc,2\n', "v", [1, 2]),
    "quotes in a quoted word": ('n,v\n"a ""b"" , c",1\n', "v", [1]),
    "a form feed and a line separator": ("n,v\n\fa\u2028,1\nb\x1d,2\n", "v", [1, 2]),
    "no names": ("2020-01-01,5\n2020-01-02,7\n", "2", [5, 7]),
    "no names, words": ("A,5\nA,7\n", "2", [5, 7]),
    "a year for a name": ("date,2020\n2020-01-01,5\n2020-01-02,6\n", "2020", [5, 6]),
    "a small number for a name": ("date,1\n2020-01-01,5\n2020-01-02,6\n", "1", [5, 6]),
    "0 for the only name": ("0\n1.5\n2.5\n", "0", [1.5, 2.5]),
    "0 for the first value": ("0\n1.5\n2.5\n", "1", [0, 1.5, 2.5]),
}


@pytest.mark.parametrize(("text", "column", "values"), READ.values(), ids=READ)
def test_reads_what_is_certain(text, column, values, tmp_path):
    path = write(tmp_path, text)
    assert read_values(path, column).tolist() == values


# text, column, parts of the message
REFUSED = {
    "several columns": ("a,b\n1,5\n3,6\n", "", ["2 columns of numbers", "data.column", "a, b"]),
    "an index alone": (
        "t,w\n0,a\n1,b\n",
        "",
        ["no column of numbers apart from", "data.column", "t, w"],
    ),
    "times alone": ("day,w\n2020-01-01,a\n2020-01-02,b\n", "", ["data.column to one of w"]),
    "nothing but times": ("day\n2020-01-01\n2020-01-02\n", "", ["holds only times"]),
    "unknown column": ("a,b\n1,5\n", "c", ["no column c", "data.column", "a, b"]),
    "a number where names are": ("a,b\n1,5\n", "2", ["no column 2", "a, b"]),
    "one name twice": ("d,c,c\na,1,100\n", "c", ["2 columns have the name c"]),
    "rows wider than the header": ("d,p\na,1,234.5\n", "p", ["line 2 has 3 cells", "line 1 has 2"]),
    "a later row that is wider": ("d,p\na,1\nb,1,234\n", "p", ["line 3 has 3 cells"]),
    "decimal commas or two cells": (
        "v\n1,5\n2,25\n",
        "v",
        ["line 2 has 2 cells", '; a first line "sep=;" if the commas are decimal'],
    ),
    "a comma in one row": ("v\n1\n2,5\n", "v", ["line 3 has 2 cells"]),
    "a row that is shorter": ("d,p\na,1\nb\n", "p", ["line 3 has 1 cell "]),
    "a blank line": ("d,p\na,1\n\nb,2\n", "p", ["line 3 has 0 cells"]),
    "R's write.table": ('"a","b"\n"1",10,0.5\n"2",20,0.6\n', "a", ["line 2 has 3 cells"]),
    "R's write.table with blanks": ('"a" "b"\n"1" 10 0.5\n', "a", ["line 2 has 3 cells"]),
    "two separators, no names": (
        "01.01.2024;1,5\n02.01.2024;2,25\n",
        "2",
        ["a comma and a semicolon", "write sep=; as the first line to choose the semicolon"],
    ),
    "a comma or a tab": ("a,b\tc,d\n1,2\t3,4\n", "", ["write sep=, as the first", "the comma"]),
    "two separators, no column given": (
        "Z;T, C\n01.01.;1,5\n02.01.;2,7\n",
        "",
        ["a comma and a semicolon", "sep=;"],
    ),
    "thousands": ('v\n"1,234"\n"2,345"\n', "v", ["1,234", "1.234", "1234", "line 2"]),
    "thousands and points": ('v\n"1,234.50"\n"1,5"\n', "v", ["line 2"]),
    "thousands of thousands": ('v\n"1,234,567"\n', "v", ["line 2"]),
    "German thousands": (
        "Monat;Stueck\nJan;906\nFeb;895\nMar;1.015\nApr;1.053\n",
        "Stueck",
        ['column Stueck: "1.015" in line 4', "1.015 or 1015", "without points"],
    ),
    "German thousands, four digits together": ("a;v\nx;1015\ny;-12.345\n", "v", ["or -12345"]),
    "German thousands in one column": ("v\n906\n1.015\n", "v", ["line 3", "1.015 or 1015"]),
    "German thousands between tabs": ("a\tv\nx\t2.906\ny\t1.015\n", "v", ["2.906 or 2906"]),
    "German thousands between commas": ("a,v\nx,906\ny,1.015\n", "v", ["1.015 or 1015"]),
    "German thousands of thousands": ("v\n1.015\n1.234.567\n", "v", ["1.015 or 1015"]),
    "only thousands of thousands": ("v\n1.234.567\n", "v", ["1234567", "without points"]),
    "German thousands and decimals": ("a;v\nx;1.015\ny;0,5\n", "v", ["1.015 or 1015"]),
    "pandas' numbers for names": (
        "0,1,2\n10,20,30\n11,21,31\n",
        "1",
        ["0, 1, 2", "names or values"],
    ),
    "pandas' numbers for names, by position": ("0,1\n10,20\n11,21\n", "2", ["names or values"]),
    "0 for a name or a value": ("0\n1.5\n2.5\n", "", ["data.column=0", "data.column=1"]),
    "a name that is a position": ("2,5\n3,7.5\n", "2", ["names or values"]),
    "a word over words": ("country,2020\nFrance,5\nSpain,6\n", "2", ["names or values"]),
    "missing marks": (
        "d,v\na,1\nb,?\nc,NA\nd,\ne,5\n",
        "v",
        [
            "3 cells",
            '"?" in line 3, "NA" in line 4, "" in line 5: fill them in, or take the rows out',
        ],
    ),
    "many missing marks": (
        "d,v\n" + "a,x\n" * 10,
        "v",
        ["10 cells", "line 2", "line 3", "line 4", "7 more"],
    ),
    "after a line break in quotes": ('n,"m",v\n1,"a\nb",10\n2,"c",x\n', "v", ['"x" in line 4']),
    "after a form feed": ("n,v\n\fa,1\nb,x\n", "v", ['"x" in line 3']),
    "after comments": ("# c\n\na,v\n1,high\n", "v", ['"high" in line 4']),
    "underscores": ("v\n1_000\n2_000\n", "v", ["1_000", "line 2"]),
    "full-width digits": ("v\n\uff11\n", "v", ["line 2"]),
    "hexadecimal": ("v\n0x10\n", "v", ["line 2"]),
    "no number": ("v\nNaN\ninf\n-Infinity\n", "v", ["3 cells", "NaN"]),
    "a number that is too large": ("v\n1\n1e999\n", "v", ["1e999", "line 3"]),
    "percent": ("v\n5%\n", "v", ["5%"]),
    "text after a quote": ('n,v\n"a"b,1\n', "v", ["line 2", "quotes"]),
    "a quote that is not closed": ('n,v\na,1\n"b,2\nc,3\n', "v", ["line 3", "quotes"]),
    "nothing": ("", "v", ["holds no values"]),
    "only comments": ("# a\n\n", "v", ["holds no values"]),
    "only names": ("d,v\n", "v", ["holds no values"]),
    "only names, no column given": ("d,v\n", "", ["holds no values"]),
    "only one name": ("v\n", "", ["holds no values"]),
    "latin-1": (
        "d;Température\n1;2.5\n".encode("latin-1"),
        "v",
        ["line 1", "data.encoding", "latin-1"],
    ),
    "UTF-16 without a mark": ("d,v\n1,2\n".encode("utf-16-le"), "v", ["data.encoding", "utf-16"]),
    "UTF-16": ("d,v\n1,2\n".encode("utf-16"), "v", ["data.encoding", "utf-16"]),
}


@pytest.mark.parametrize(("text", "column", "parts"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_is_not_certain(text, column, parts, tmp_path):
    path = write(tmp_path, text)
    message = refusal(path, column)
    assert message.startswith(f"data.source={path}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8-sig"])
def test_an_encoding_that_is_given_is_used(encoding, tmp_path):
    path = write(tmp_path, "d;Température\na;2.5\nb;3.5\n".encode(encoding))
    assert read_values(path, "Température", encoding=encoding).tolist() == [2.5, 3.5]
    assert read_column(path, encoding=encoding).name == "Température"


@pytest.mark.parametrize("encoding", ["utf-9", "hex", ""])
def test_an_unknown_encoding_is_one_error(encoding, tmp_path):
    message = refusal(write(tmp_path, "v\n1\n"), "v", encoding=encoding)
    assert f"data.encoding={encoding}" in message


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = write(tmp_path, "\ufeffv,w\n5,x\n")
    assert read_values(path, "v").tolist() == [5]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_packed_text(suffix, pack, tmp_path):
    packed = pack.compress(b"v\n1\n2.5\n")
    assert read_values(write(tmp_path, packed, f"a.csv{suffix}")).tolist() == [1, 2.5]
    for broken in (packed[:-6], b"v\n1\n", packed[:20] + bytes(9) + packed[29:]):
        message = refusal(write(tmp_path, broken, f"b.csv{suffix}"))
        assert "cannot be" in message
        assert message[-4:] != "None"
    assert ".csv" in refusal(write(tmp_path, packed, f"a.json{suffix}"))


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.TXT", ";"), ("a.CSV", ",")])
def test_the_suffix_does_not_decide_the_separator(name, separator, tmp_path):
    path = write(tmp_path, f"w{separator}v\na{separator}5\nb{separator}7.5\n", name)
    assert read_values(path, "v").tolist() == [5, 7.5]


def test_a_file_that_is_missing_or_a_folder_is_one_error(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "b.csv")
    assert "cannot be read: No such file" in refusal(tmp_path / "b.npy")
    assert refusal(Path("b.csv")).endswith(f" (looked for from {Path.cwd()})")
    (tmp_path / "c.csv").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "c.csv")


def test_arrays(tmp_path):
    path = tmp_path / "a.npy"
    for array in ([5, 7], [[5], [7]]):
        np.save(path, np.array(array))
        assert read_values(path).tolist() == [5, 7]
    for empty in (np.zeros(0), np.zeros((0, 1))):
        np.save(path, empty)
        assert "holds no values" in refusal(path)
    np.save(path, np.array([[0.5, 5], [1, 7]], dtype=np.float32))
    assert read_values(path, "2").tolist() == [5, 7]
    assert read_column(path, "2").name == ""
    assert "2 columns of numbers: set data.column to one of 1, 2" in refusal(path)
    np.save(path, np.array([[0, 5], [1, 7]]))
    assert read_values(path).tolist() == [5, 7]  # the other one counts
    times = read_column(path, "2", time="1").times
    assert times is not None
    assert times.following(2) == ["2", "3"]
    np.save(path, np.array([1.0, np.nan, np.inf]))
    message = refusal(path)
    assert '"nan" in row 2, "inf" in row 3' in message


def test_what_is_no_array_is_said_without_advice_to_load_pickles(tmp_path):
    np.savez(tmp_path / "b.npz", a=np.ones(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "d.npy", np.array(["a"]))
    np.save(tmp_path / "e.npy", np.zeros((2, 2, 2)))
    for path in (tmp_path / "d.npy", tmp_path / "e.npy"):
        assert "numbers of one dimension, or of two" in refusal(path)
    for path in (write(tmp_path, "1 2\n", "a.npy"), tmp_path / "b.npy", tmp_path / "c.npy"):
        message = refusal(path)
        assert "no .npy array of numbers" in message
        assert "pickle" not in message


def test_a_wide_array_is_not_copied(tmp_path):
    path = tmp_path / "a.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float64, (1000, 20_000))  # 160 MB, sparse
    array[:, 7] = 1
    array.flush()
    program = (
        "import resource, sys; from sinlstm_dist.data import read_values\n"
        "size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = size(); assert read_values(sys.argv[1], '8').sum() == 1000\n"
        "print(size() - before)"
    )
    assert int(run(program, path)) < 80  # pages of 4 kB around each value


def run(program: str, *words: object) -> str:
    command = [sys.executable, "-c", program, *map(str, words)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_only_what_needs_pandas_loads_it(tmp_path):
    program = (
        "import sys; from sinlstm_dist.data import read_values\n"
        "for path in sys.argv[1:]: read_values(path, 'v')\n"
        "print('pandas' in sys.modules)"
    )
    plain = write(tmp_path, "date,v\n2020-01-01,1\n2020-01-02,2\n")
    other = write(tmp_path, "date,v\n30.01.2020,1\n31.01.2020,2\n", "b.csv")
    assert run(program, plain) == "False\n"
    assert run(program, other) == "True\n"


def test_without_pandas_the_command_that_installs_it_is_said(tmp_path):
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from sinlstm_dist.data import read_values\n"
        "from sinlstm_dist.errors import MissingPackage\n"
        "try: read_values(sys.argv[1], 'v')\n"
        "except MissingPackage as error: print(error)\n"
        "print(read_values(sys.argv[2], 'v', time='none').tolist())"
    )
    other = write(tmp_path, "date,v\n30.01.2020,1\n31.01.2020,2\n", "b.csv")
    said = run(program, other, other)
    assert "needs the package pandas: pip install 'sinlstm-dist[series]'" in said
    assert said.endswith("[1.0, 2.0]\n")
    said = run(program, write(tmp_path, "", "c.parquet"), other)
    assert "c.parquet needs the package pandas" in said


def test_parquet(tmp_path):
    days = pandas.date_range("2020-01-01", periods=3)
    frame = pandas.DataFrame(
        {"day": days, "v": [1, 2, 3], "w": ["a", "b", "c"], "n": [1.5, None, 2]}
    )
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    column = read_column(path, "v")
    assert column.values.tolist() == [1, 2, 3]
    assert column.times is not None
    assert column.times.following(1) == ["2020-01-04"]
    assert '"nan" in row 2' in refusal(path, "n")
    assert '"a" in row 1' in refusal(path, "w")
    assert "2 columns of numbers: set data.column to one of v, n" in refusal(path)
    frame["day"] = days.tz_localize("Europe/Berlin")
    frame.to_parquet(path)
    times = read_column(path, "v").times
    assert times is not None
    assert times.text(2) == "2020-01-03 00:00:00+01:00"
    frame["day"] = pandas.date_range("2020-03-28", periods=3, tz="Europe/Berlin")
    frame.to_parquet(path)
    times = read_column(path, "v").times
    assert times is not None
    assert times.text(1) == "2020-03-29 00:00:00+01:00"
    assert times.following(1) == ["2020-03-31 00:00:00+02:00"]
    frame["day"] = days
    frame.set_index("day")[["v"]].to_parquet(path)
    assert read_column(path).values.tolist() == [1, 2, 3]
    assert "cannot be read" in refusal(write(tmp_path, "no parquet", "b.parquet"))


def frame_column(folder: Path, frame: Any, column: str = "", **keywords: str) -> Column:
    frame.to_parquet(folder / "a.parquet")
    return read_column(folder / "a.parquet", column, **keywords)


@pytest.mark.parametrize(
    ("start", "step", "texts"),
    [
        ("2024-01-02 22:00", "h", ["2024-01-02T22:00", "2024-01-03T00:00", "2024-01-03T02:00"]),
        ("2024-01-02", "D", ["2024-01-02", "2024-01-04", "2024-01-06"]),
        ("2024-01-02", "s", [f"2024-01-02T00:00:0{second}" for second in (0, 2, 4)]),
        ("2024-01-02", "ms", [f"2024-01-02T00:00:00.00{second}" for second in (0, 2, 4)]),
        ("2024-01-02", "ns", [f"2024-01-02T00:00:00.00000000{second}" for second in (0, 2, 4)]),
    ],
)
def test_times_of_parquet_have_one_form(start, step, texts, tmp_path):
    times = pandas.date_range(start, periods=5, freq=step, unit="ns")
    found = frame_column(tmp_path, pandas.DataFrame({"t": times, "v": range(5)})).times
    assert found is not None
    assert [found.text(index) for index in (0, 2, 4)] == texts
    holed = pandas.DataFrame({"t": times.where(times != times[1]), "v": range(5)})
    with pytest.raises(ConfigError, match="in row 2 is no date"):
        frame_column(tmp_path, holed)


def test_numbers_of_parquet_that_are_text_or_decimal_are_seen(tmp_path):
    frame = pandas.DataFrame({"v": [Decimal("1.015"), None, Decimal("2.015")]})
    with pytest.raises(ConfigError, match='"nan" in row 2'):
        frame_column(tmp_path, frame)
    assert frame_column(tmp_path, frame.dropna()).values.tolist() == [1.015, 2.015]
    for cells in ([Decimal("1.5"), Decimal("2.5")], ["1.5", " 2.5"]):
        frame = pandas.DataFrame({"w": ["a", "b"], "v": cells})
        assert frame_column(tmp_path, frame).values.tolist() == [1.5, 2.5]
        frame["v"] = frame["v"].astype("category")
        assert frame_column(tmp_path, frame).values.tolist() == [1.5, 2.5]
        frame["n"] = [1.5, 2]
        with pytest.raises(ConfigError, match=r"2 columns of numbers: set data\.column"):
            frame_column(tmp_path, frame)


# times, the text of the second, what follows
FRAMES = {
    "days without signs": ([20240130, 20240131], "20240131", "20240201"),
    "nanoseconds": (
        [1704153600000000001, 1704153600000000004],
        "1704153600000000004",
        "1704153600000000007",
    ),
    "whole numbers": ([2001.0, 2002.0], "2002", "2003"),
    "rounded sums": ([0.1, 0.2, 0.1 + 0.2], "0.2", "0.4"),
    "small steps": ([0.0, 1e-6, 2e-6], "0.000001", "0.000003"),
}


def _whole(number: float) -> str:
    return f"{number:.0f}" if number >= 1 else str(number)


@pytest.mark.parametrize(("times", "text", "later"), FRAMES.values(), ids=FRAMES)
def test_numbers_as_times_are_written_as_they_are(times, text, later, tmp_path):
    frame = pandas.DataFrame({"time": times, "v": range(len(times))})
    frame.to_csv(tmp_path / "a.csv", index=False, float_format=_whole)
    for column in (frame_column(tmp_path, frame), read_column(tmp_path / "a.csv", "v")):
        assert column.times is not None
        assert column.times.text(1) == text
        assert column.times.following(1) == [later]
        assert column.values.tolist() == list(range(len(times)))
        assert column.values.dtype == np.float64


def test_zoned_times_of_parquet_are_those_of_the_zone(tmp_path):
    days = pandas.date_range("2024-01-03", periods=3, tz="Europe/Berlin")
    times = frame_column(tmp_path, pandas.DataFrame({"t": days, "v": range(3)}), "v").times
    assert times is not None
    assert times.text(0) == "2024-01-03 00:00:00+01:00"
    assert times.following(1) == ["2024-01-06 00:00:00+01:00"]


def test_an_index_of_parquet_is_a_column(tmp_path):
    years = pandas.RangeIndex(2001, 2004, name="year")
    times = frame_column(tmp_path, pandas.DataFrame({"v": range(3)}, years), "v").times
    assert times is not None
    assert times.following(1) == ["2004"]
    frame = pandas.DataFrame({"v": [1.0, 2.0]}, pandas.Index(["a", "b"], name="v"))
    assert frame_column(tmp_path, pandas.DataFrame({"u": [5.5, 7]}, [4, 9])).name == "u"
    hours = pandas.date_range("2024-01-03 23:00", periods=3, freq="h")
    times = frame_column(tmp_path, pandas.DataFrame({"v": range(3)}, hours)).times
    assert times is not None
    assert times.following(1) == ["2024-01-04T02:00"]
    with pytest.raises(ConfigError, match="2 columns have the name v"):
        frame_column(tmp_path, frame, "v")


def test_an_unknown_kind_of_file_is_named_with_the_known_ones(tmp_path):
    message = refusal(tmp_path / "a.xlsx")
    for known in (".csv", ".tsv", ".txt", ".npy", ".parquet", ".gz"):
        assert known in message


CELLS = st.sampled_from(
    [
        "1",
        "2.5",
        "-3",
        "0",
        "1,5",
        "1,234",
        "NA",
        "",
        "x",
        "a b",
        '"',
        "2020",
        "1e3",
        "1_0",
        ";",
        "#",
    ]
)
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5)
)


@settings(max_examples=300, deadline=None)
@given(
    table=TABLES,
    names=st.permutations(["a", "b", "value", "", "0", "2"]),
    separator=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_read_is_what_was_written(table, names, separator, quoting, ends, tmp_path_factory):
    """A column is read as it was written, with or without decimal commas, or it is refused."""
    names = names[: len(table[0])]
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=ends).writerows(
        [names, *table]
    )
    path = write(tmp_path_factory.getbasetemp(), text.getvalue(), "any.csv")
    for asked in ("", *(name for name in names if name in ("a", "b", "value"))):
        try:
            found = read_column(path, asked, time="none")
        except ConfigError:
            continue
        columns = {name: cells for name, *cells in zip(names, *table, strict=True)}
        if found.name not in names:  # the names are numbers that count on
            assert not asked
            columns[""] = [names[-1], *columns[names[-1]]]
        expected = [float(cell.replace(",", ".")) for cell in columns[found.name]]
        assert found.values.tolist() == expected
        assert not asked or found.name == asked


NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(
    numbers=st.lists(st.integers(-(10**7), 10**7), min_size=1, max_size=9),
    mark=st.sampled_from(".,"),
    separator=st.sampled_from(";\t|"),
)
def test_marks_of_thousands_are_never_read_as_decimals(numbers, mark, separator, tmp_path_factory):
    rows = "".join(f"w{separator}{number:,}\n".replace(",", mark) for number in numbers)
    path = write(tmp_path_factory.getbasetemp(), f"name{separator}v\n{rows}", "thousands.csv")
    try:
        found = read_values(path, "v").tolist()
    except ConfigError:
        assert mark in rows
    else:
        assert found == numbers


@settings(max_examples=100, deadline=None)
@given(values=NUMBERS)
def test_numbers_keep_every_bit(values, tmp_path_factory):
    text = "name;v\n" + "".join(f"w;{value!r}\n" for value in values)
    for written in (text, text.replace(".", ",")):
        path = write(tmp_path_factory.getbasetemp(), written, "bits.csv")
        with contextlib.suppress(ConfigError):  # all marks may be those of thousands
            assert read_values(path, "v").tobytes() == np.array(values).tobytes()
