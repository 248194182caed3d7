"""The times of a series: which column has them, their order, their holes, what follows."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinlstm_dist.data.reading import Column, read_column
from sinlstm_dist.errors import ConfigError


def series(folder: Path, times: list[str], name: str = "date", **keywords: str) -> Column:
    """A file with these times, one per value, read."""
    path = folder / "a.csv"
    rows = "".join(f'"{time}",{value}\n' for value, time in enumerate(times, 5))
    path.write_text(f"{name},v\n{rows}")
    return read_column(path, "v", **keywords)


def refusal(folder: Path, times: list[str], name: str = "date", **keywords: str) -> str:
    with pytest.raises(ConfigError) as caught:
        series(folder, times, name, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FOLLOWING = {
    "days": (["2020-02-27", "2020-02-28"], ["2020-02-29", "2020-03-01"]),
    "weeks": (["2020-02-15", "2020-02-22"], ["2020-02-29", "2020-03-07"]),
    "hours": (["2020-01-01 22:00", "2020-01-01 23:00"], ["2020-01-02 00:00", "2020-01-02 01:00"]),
    "seconds": (
        ["2020-01-01T00:00:00Z", "2020-01-01T00:00:30Z"],
        ["2020-01-01T00:01:00Z", "2020-01-01T00:01:30Z"],
    ),
    "a zone": (
        ["2020-01-01 00:00:00+01:00", "2020-01-02 00:00:00+01:00"],
        ["2020-01-03 00:00:00+01:00", "2020-01-04 00:00:00+01:00"],
    ),
    "milliseconds": (
        ["2020-01-01T00:00:00.250", "2020-01-01T00:00:00.500"],
        ["2020-01-01T00:00:00.750", "2020-01-01T00:00:01.000"],
    ),
    "months": (["2019-11", "2019-12"], ["2020-01", "2020-02"]),
    "first days of months": (["2019-11-01", "2019-12-01"], ["2020-01-01", "2020-02-01"]),
    "last days of months": (["2019-11-30", "2019-12-31"], ["2020-01-31", "2020-02-29"]),
    "30ths of months": (
        ["2024-10-30", "2024-11-30", "2024-12-30", "2025-01-30", "2025-02-28", "2025-03-30"],
        ["2025-04-30", "2025-05-30"],
    ),
    "29ths of months": (
        ["2024-12-29T12:00", "2025-01-29T12:00", "2025-02-28T12:00", "2025-03-29T12:00"],
        ["2025-04-29T12:00", "2025-05-29T12:00"],
    ),
    "29ths before February": (["2024-12-29", "2025-01-29"], ["2025-02-28", "2025-03-29"]),
    "last days with a clock": (
        ["2024-12-31 23:59", "2025-01-31 23:59"],
        ["2025-02-28 23:59", "2025-03-31 23:59"],
    ),
    "last days of quarters": (["2019-06-30", "2019-09-30"], ["2019-12-31", "2020-03-31"]),
    "first days of years": (["2019-01-01", "2020-01-01"], ["2021-01-01", "2022-01-01"]),
    "quarters": (["2019Q3", "2019Q4"], ["2020Q1", "2020Q2"]),
    "days without signs": (["20200227", "20200228"], ["20200229", "20200301"]),
    "months without signs": (["200511", "200512"], ["200601", "200602"]),
    "tenths of a second": (
        ["2020-01-01T00:00:00.5", "2020-01-01T00:00:01.0"],
        ["2020-01-01T00:00:01.5", "2020-01-01T00:00:02.0"],
    ),
    "years": (["2019", "2020"], ["2021", "2022"]),
    "decimal years": (
        ["1960.50", "1960.58", "1960.67", "1960.75", "1960.83", "1960.92"],
        ["1961.00", "1961.09"],
    ),
    "numbers": (["0.1", "0.2", "0.3"], ["0.4", "0.5"]),
}


@pytest.mark.parametrize(("times", "later"), FOLLOWING.values(), ids=FOLLOWING)
def test_the_times_that_follow_have_the_form_of_the_file(times, later, tmp_path):
    found = series(tmp_path, times).times
    assert found is not None
    assert [found.text(index) for index in range(len(times))] == times
    assert found.following(2) == later
    backwards = series(tmp_path, times[::-1])
    assert backwards.values.tolist() == [*range(5, 5 + len(times))][::-1]
    assert backwards.note == "newest first in the file: read backwards"
    assert backwards.times is not None
    assert backwards.times.following(2) == later


OTHER = {
    "German": (["30.01.2020", "31.01.2020"], ["01.02.2020", "02.02.2020"]),
    "German with hours": (
        ["31.01.2020 22:00", "31.01.2020 23:00"],
        ["01.02.2020 00:00", "01.02.2020 01:00"],
    ),
    "American": (["1/30/2020", "1/31/2020"], ["2/1/2020", "2/2/2020"]),
    "American, two digits": (["01/30/2020", "01/31/2020"], ["02/01/2020", "02/02/2020"]),
    "Excel's": (["30-Jan-2020", "31-Jan-2020"], ["01-Feb-2020", "02-Feb-2020"]),
    "words": (["Nov 2019", "Dec 2019"], ["Jan 2020", "Feb 2020"]),
    "slashes": (["2020/01/30", "2020/01/31"], ["2020/02/01", "2020/02/02"]),
    "digits left out": (["2024-1-3", "2024-1-4"], ["2024-1-5", "2024-1-6"]),
    "digits left out later": (["2024-10-31", "2024-11-1"], ["2024-11-2", "2024-11-3"]),
    "decided by a later row": (
        ["11.12.2019", "12.12.2019", "13.12.2019"],
        ["14.12.2019", "15.12.2019"],
    ),
}


@pytest.mark.parametrize(("times", "later"), OTHER.values(), ids=OTHER)
def test_other_dates_are_read_by_pandas(times, later, tmp_path):
    found = series(tmp_path, times).times
    assert found is not None
    assert [found.text(index) for index in range(len(times))] == times
    assert found.following(2) == later


def test_day_first_or_month_first_must_be_decided(tmp_path):
    message = refusal(tmp_path, ["01/02/2020", "02/02/2020", "03/02/2020"])
    assert "2020-01-02 or 2020-02-01" in message
    assert "data.time=none" in message
    message = refusal(tmp_path, ["01/01/2020", "02/01/2020", "03/01/2020"])
    assert '"02/01/2020" may mean 2020-02-01 or 2020-01-02' in message
    found = series(tmp_path, ["11/02/2020", "12/02/2020", "13/02/2020"]).times
    assert found is not None
    assert found.following(1) == ["14/02/2020"]


@pytest.mark.parametrize(
    "times", [["03.01.55", "04.01.55"], ["30-Jan-20", "31-Jan-20"], ["Jan-20", "Feb-20"]]
)
def test_the_century_of_a_year_is_not_guessed(times, tmp_path):
    message = refusal(tmp_path, times)
    assert f'column date: "{times[0]}" has a year of two digits: write four' in message
    assert "data.time=none" in message
    assert series(tmp_path, times, time="none").values.tolist() == [5, 6]


BAD = {
    "holes": (
        ["2020-01-01", "2020-01-02", "2020-01-05", "2020-01-06"],
        ["2 times", "2020-01-03, 2020-01-04", "line 4", "data.gaps=allow"],
    ),
    "holes, newest first": (
        ["2020-01-06", "2020-01-05", "2020-01-02", "2020-01-01"],
        ["2020-01-03, 2020-01-04", "before line 3"],
    ),
    "a month": (["2020-01", "2020-02", "2020-04", "2020-05"], ["1 time ", "2020-03"]),
    "a year": (["2001", "2002", "2004", "2005"], ["1 time ", "2003"]),
    "many": (["2020-01-01", "2020-01-02", "2021-01-03", "2021-01-04"], ["366 times", "363 more"]),
    "uneven": (
        ["2020-01-01 00:00", "2020-01-01 01:00", "2020-01-01 02:00", "2020-01-01 02:45"],
        ["not evenly spaced", "line 5 is 0.75 steps after", "where 1 is usual", "data.gaps=allow"],
    ),
    "uneven years": (["1996", "2000", "2004", "2009"], ["not evenly spaced", "line 5"]),
}


@pytest.mark.parametrize(("times", "parts"), BAD.values(), ids=BAD)
def test_holes_are_named_unless_they_are_allowed(times, parts, tmp_path):
    message = refusal(tmp_path, times)
    assert "column date" in message
    for part in parts:
        assert part in message
    assert len(series(tmp_path, times, gaps="allow").values) == len(times)
    assert series(tmp_path, times, time="none").times is None


DISORDER = {
    "two series": (
        ["2020-01-01", "2020-01-02", "2020-01-01", "2020-01-02"],
        ["2020-01-02 to 2020-01-01", "line 4"],
    ),
    "twice": (["2020-01-01", "2020-01-02", "2020-01-02"], ["2020-01-02 again", "line 4"]),
    "twice, newest first": (
        ["2020-01-03", "2020-01-02", "2020-01-02", "2020-01-01"],
        ["2020-01-02 again", "line 3"],
    ),
    "years of several": (["2001", "2002", "2001", "2002"], ["2002 to 2001", "line 4"]),
}


@pytest.mark.parametrize(("times", "parts"), DISORDER.values(), ids=DISORDER)
def test_times_that_do_not_go_on_are_refused(times, parts, tmp_path):
    for gaps in ("refuse", "allow"):
        message = refusal(tmp_path, times, gaps=gaps)
        for part in (*parts, "data.time"):
            assert part in message


NO_DATES = {
    "a word": (["2020-01-01", "soon"], '"soon" in line 3'),
    "a 13th month": (["2020-12-01", "2020-13-01"], '"2020-13-01" in line 3'),
    "a 30th of February": (["2020-02-29", "2020-02-30"], '"2020-02-30" in line 3'),
    "no time of day": (["2020-01-01 00:00", "2020-01-02"], '"2020-01-02" in line 3'),
    "another form": (["13.01.2020", "01/14/2020"], '"01/14/2020" in line 3'),
    "missing": (["2020-01-01", ""], '"" in line 3'),
    "too old for nanoseconds": (
        ["2020-01-01T00:00:00.123456789", "1500-01-01T00:00:00.123456789"],
        "in line 3",
    ),
    "no quarter": (["2020Q4", "2020Q5"], '"2020Q5" in line 3'),
    "no day": (["20201231", "20201232"], '"20201232" in line 3'),
}


@pytest.mark.parametrize(("times", "part"), NO_DATES.values(), ids=NO_DATES)
def test_what_is_no_date_is_named(times, part, tmp_path):
    message = refusal(tmp_path, times)
    assert f"{part} is no date in the form of" in message or part == "in line 3"
    assert "correct it, or set data.time=none" in message


def test_summer_time_has_no_hole(tmp_path):
    zones = [("00:00", "+01:00"), ("01:00", "+01:00"), ("03:00", "+02:00"), ("04:00", "+02:00")]
    times = [f"2020-03-29T{clock}:00{zone}" for clock, zone in zones]
    for rows in (times, times[::-1]):
        found = series(tmp_path, rows).times
        assert found is not None
        assert [found.text(index) for index in range(4)] == times
        assert found.following(1) == ["2020-03-29T05:00:00+02:00"]


@settings(max_examples=100, deadline=None)
@given(
    start=st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
    hours=st.sampled_from([1, 6, 24]),
    form=st.sampled_from(["%Y-%m-%d %H:%M%z", "%Y-%m-%dT%H:%M:%S%z"]),
    colon=st.booleans(),
)
def test_zoned_times_are_written_as_the_file_has_them(
    start, zone, hours, form, colon, tmp_path_factory
):
    utc = start.replace(second=0, microsecond=0, tzinfo=UTC)
    local = [
        (utc + index * timedelta(hours=hours)).astimezone(ZoneInfo(zone)) for index in range(400)
    ]
    times = [time.strftime(form) for time in local]
    if colon:
        times = [f"{time[:-2]}:{time[-2:]}" for time in times]
    found = series(tmp_path_factory.getbasetemp(), times).times
    assert found is not None
    assert [found.text(index) for index in range(len(times))] == times
    later = datetime.fromisoformat(found.following(1)[0])
    assert later - local[-1] == timedelta(hours=hours)
    assert later.utcoffset() == local[-1].utcoffset()


def on_the_wall(days: list[datetime], zone: str, form: str) -> list[str]:
    """One time of day in a zone, as a file has it: its distance from UTC changes twice a year."""
    texts = [day.replace(tzinfo=ZoneInfo(zone)).strftime(form) for day in days]
    return [f"{text[:-2]}:{text[-2:]}" for text in texts]


OF_ZONES = {
    "zone": st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    "form": st.sampled_from(["%Y-%m-%d %H:%M%z", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d%z"]),
    "clock": st.sampled_from([0, 1, 9, 23]),
    "first": st.integers(0, 20_000),
}


@settings(max_examples=100, deadline=None)
@given(unit=st.sampled_from(["days", "weeks", "months"]), is_backwards=st.booleans(), **OF_ZONES)
def test_days_and_months_are_those_of_the_clock_on_the_wall(
    unit, is_backwards, zone, form, clock, first, tmp_path_factory
):
    """Where all rows have one time of day, a day of 23 or 25 hours is a day."""
    start = datetime(1970 + first // 400, 1 + first % 12, 1, clock)
    days = [start + index * timedelta(7 if unit == "weeks" else 1) for index in range(400)]
    if unit == "months":
        months = [start.month - 1 + index for index in range(40)]
        days = [start.replace(year=start.year + m // 12, month=m % 12 + 1) for m in months]
    *times, _ = on_the_wall(days, zone, form)
    rows = times[::-1] if is_backwards else times
    found = series(tmp_path_factory.getbasetemp(), rows).times
    assert found is not None
    assert [found.text(index) for index in range(len(times))] == times
    assert found.following(1) == [days[-1].strftime(form.removesuffix("%z")) + times[-1][-6:]]


@settings(max_examples=50, deadline=None)
@given(**OF_ZONES)
def test_weekends_are_those_of_the_clock_on_the_wall(zone, form, clock, first, tmp_path_factory):
    every = [datetime(1970, 1, 5, clock) + timedelta(first + index) for index in range(400)]
    days = [day for day in every if day.weekday() < 5]
    times = on_the_wall(days, zone, form)
    folder = tmp_path_factory.getbasetemp()
    found = series(folder, times, gaps="allow").times
    assert found is not None
    later = [datetime.fromisoformat(text[:10]) for text in found.following(10)]
    assert {day.weekday() for day in later} == set(range(5))
    assert "lacks " in refusal(folder, times)


def test_holes_and_doubles_on_the_wall_are_named_as_the_file_has_them(tmp_path):
    days = [datetime(2024, 3, 28) + timedelta(index) for index in range(7)]
    times = on_the_wall(days, "Europe/Berlin", "%Y-%m-%dT%H:%M%z")
    assert [time[-6:] for time in times] == ["+01:00"] * 4 + ["+02:00"] * 3
    message = refusal(tmp_path, times[:3] + times[4:])
    assert "lacks 1 time (2024-03-31T00:00+01:00; the first hole is before line 5)" in message
    message = refusal(tmp_path, times[:5] + times[4:])
    assert "has 2024-04-01T00:00+02:00 again in line 7" in message
    message = refusal(tmp_path, [*times[:5], times[2]])
    assert "goes from 2024-04-01T00:00+02:00 to 2024-03-30T00:00+01:00 in line 7" in message


@pytest.mark.parametrize(
    ("clocks", "found"),
    [
        (["27 00:00", "27 01:00", "27 02:00", "27 02:00", "27 03:00"], " again in "),
        (["27 02:00", "27 02:30", "27 02:00", "27 02:30"], "goes from"),
        (["26 23:00", "27 00:00", "27 01:00", "27 03:00"], "lacks 1 time"),
    ],
)
def test_local_times_over_a_change_of_the_clock_need_their_zone(clocks, found, tmp_path):
    advice = "local times need their zone where the clock changes"
    message = refusal(tmp_path, [f"2024-10-{clock}" for clock in clocks])
    assert found in message
    assert f"{advice}, such as 2024-10-27 0" in message
    for changed in ("2024-10-{}Z", "2024-08-{}"):  # 27 August 2024 is no Sunday
        message = refusal(tmp_path, [changed.format(clock) for clock in clocks])
        assert found in message
        assert advice not in message


def test_a_file_without_weekends_goes_on_without_them(tmp_path):
    days = ["02", "03", "04", "05", "06", "09", "10", "11", "12", "13"]  # of March 2020
    times = [f"2020-03-{day}" for day in days]
    assert "2020-03-07, 2020-03-08" in refusal(tmp_path, times)
    found = series(tmp_path, times, gaps="allow").times
    assert found is not None
    assert found.following(2) == ["2020-03-16", "2020-03-17"]


@pytest.mark.parametrize(
    ("name", "times"),
    [("of", ["Mar 24", "Feb 24"]), ("KW", ["2024-W03", "2024-W02"]), ("ts", ["1704", "1703"])],
)
def test_a_file_whose_times_are_not_found_is_read_with_a_note(name, times, tmp_path):
    found = series(tmp_path, times, name)
    assert (found.times, found.note) == (None, "no times found")
    assert series(tmp_path, times, name, time="none").note == ""
    (tmp_path / "alone.csv").write_text("v\n5\n6.5\n")
    assert read_column(tmp_path / "alone.csv").note == ""


UNKNOWN = {
    "a zone's name": ("Date", "2024-01-03 00:00:00 UTC", "2024-01-02 00:00:00 UTC"),
    "a weekday": ("date", "Wed Jan 03 2024", "Tue Jan 02 2024"),
    "a clock after joint digits": ("Timestamp", "20240103 00:00", "20240102 00:00"),
    "a fraction of a second": ("time", "1/3/2024 0:00:00.000", "1/2/2024 0:00:00.000"),
    "a week": ("week", "2024-W03", "2024-W02"),
    "a month": ("Month", "Mar 24", "Feb 24"),
}


@pytest.mark.parametrize(("name", "new", "old"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_column_with_the_name_of_times_is_not_ignored(name, new, old, tmp_path):
    for cells, line in (([new, old], 2), (["", new, old], 3)):
        message = refusal(tmp_path, cells, name)
        assert f'column {name} may hold the times, but "{new}" in line {line} is no' in message
        assert "data.time=none" in message
    assert series(tmp_path, [new, old], name, time="none").values.tolist() == [5, 6]
    (tmp_path / "b.csv").write_text(f"day,{name} 2,{name},v\n2020-01-01,,{new},5\n")
    assert read_column(tmp_path / "b.csv", "v").times is not None


def test_a_first_time_that_is_missing_hides_no_column(tmp_path):
    for name, times in (("of", ["", "2020-01-03", "2020-01-02"]), ("year", ["NA", "2020", "2019"])):
        message = refusal(tmp_path, times, name)
        assert f"column {name}" in message
        assert f'"{times[0]}" in line 2' in message


def test_days_without_signs_are_found_by_the_name(tmp_path):
    for name in ("day", "ds", "date", "month"):
        backwards = series(tmp_path, ["20240103", "20240102"], name)
        assert backwards.values.tolist() == [6, 5]
        assert backwards.times is not None
        assert backwards.times.following(1) == ["20240104"]


def test_the_column_of_times_is_found_or_given(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Year,when,n,v\n2001,2020-01-01,3,5\n2001,2020-01-02,4,6\n")
    found = read_column(path, "v").times
    assert found is not None
    assert found.text(1) == "2020-01-02"  # dates come before numbers
    with pytest.raises(ConfigError, match=r"column Year has 2001 again in line 3"):
        read_column(path, "v", time="Year")
    by_number = read_column(path, "v", time="n").times
    assert by_number is not None
    assert by_number.following(1) == ["5"]
    assert read_column(path, "v", time="none").times is None
    with pytest.raises(
        ConfigError, match=r"no column w: set data\.time to one of Year, when, n, v"
    ):
        read_column(path, "v", time="w")
    with pytest.raises(ConfigError, match="the same column"):
        read_column(path, "v", time="v")
    path.write_text("start,end,v\n2001-01-01,2001-01-02,5\n2001-01-02,2001-01-03,6\n")
    with pytest.raises(ConfigError, match=r"data\.time to one of start, end, or to none"):
        read_column(path, "v")
    path.write_text("year,v\n2001,5\n2002,6\n")
    assert read_column(path, "year").times is None
    assert read_column(path).name == "v"
    path.write_text("2020-01-01,5\n2020-01-02,6\n")
    found = read_column(path, time="1").times
    assert found is not None
    assert found.following(1) == ["2020-01-03"]


@settings(max_examples=100, deadline=None)
@given(
    start=st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
    minutes=st.integers(1, 10_000),
    number=st.integers(4, 30),
    hole=st.integers(1, 2),
)
def test_one_missing_time_is_named(start, minutes, number, hole, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    start = start.replace(second=0, microsecond=0)
    times = [
        f"{start + index * timedelta(minutes=minutes):%Y-%m-%d %H:%M}" for index in range(number)
    ]
    found = series(folder, times[:-2]).times
    assert found is not None
    assert found.following(2) == times[-2:]
    missing = times.pop(hole)
    if number > 4:
        assert f"lacks 1 time ({missing}; " in refusal(folder, times)
