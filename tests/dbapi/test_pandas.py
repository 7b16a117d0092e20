"""pandas over the driver, and over SQLAlchemy."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

import pandas as pd
import pytest
import sqlalchemy as sa

from tests.dbapi.conftest import Place
from tests.dbapi.test_sqlalchemy import engine_of

FRAME = pd.DataFrame(
    {
        "number": [1, 2, 3],
        "part": [0.5, None, -1e300],
        "name": ["a", None, "ü'\""],
        "day": pd.to_datetime(["2024-02-29 12:00:01.5", "1969-12-31 00:00:00.5", "2100-01-01 00:00:00.25"]),
        "flag": [True, False, True],
    }
)


@pytest.fixture
def engine(place: Place) -> Iterator[sa.Engine]:
    with contextlib.closing(place.connect()):
        engine = engine_of(place)
        yield engine
        engine.dispose()


def test_a_frame_comes_back_through_sqlalchemy(engine: sa.Engine) -> None:
    assert FRAME.to_sql("frame", engine, index=False) == 3
    back = pd.read_sql_table("frame", engine)
    pd.testing.assert_frame_equal(back, FRAME, check_dtype=False)
    back = pd.read_sql("SELECT * FROM frame", engine, parse_dates=["day"], dtype={"flag": "bool"})
    pd.testing.assert_frame_equal(back, FRAME, check_dtype=False)
    with pytest.raises(ValueError, match="already exists"):
        FRAME.to_sql("frame", engine)
    FRAME.to_sql("frame", engine, index=False, if_exists="append", method="multi")
    FRAME.to_sql("frame", engine, index=False, if_exists="append", chunksize=2)
    found = pd.read_sql(
        sa.text("SELECT count(*) AS n, sum(number) AS s FROM frame WHERE number > :n"), engine, params={"n": 1}
    )
    assert found.to_dict("records") == [{"n": 6, "s": 15}]
    FRAME.to_sql("frame", engine, index=True, index_label="key", if_exists="replace")
    assert list(pd.read_sql("frame", engine, index_col="key")) == list(FRAME)


def test_a_large_frame_is_read_in_parts(engine: sa.Engine) -> None:
    large = pd.DataFrame({"n": range(20_000), "text": [f"row {n}" for n in range(20_000)]})
    large.to_sql("large", engine, index=False)
    with engine.connect().execution_options(stream_results=True) as connection:
        parts = list(pd.read_sql("SELECT * FROM large ORDER BY n", connection, chunksize=3000))
    assert [len(part) for part in parts] == [3000] * 6 + [2000]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), large)
    assert pd.read_sql("SELECT * FROM large WHERE n < 0", engine).columns.tolist() == ["n", "text"]


def test_a_frame_comes_back_through_the_driver_alone(place: Place) -> None:
    connection = place.connect(autocommit=True)
    # pandas says that it tests SQLAlchemy and sqlite3 only.
    with pytest.warns(UserWarning, match="pandas only supports SQLAlchemy"):
        assert FRAME.to_sql("frame", connection, index=False) == 3
    with pytest.warns(UserWarning, match="pandas only supports SQLAlchemy"):
        back = pd.read_sql(
            "SELECT * FROM frame WHERE number >= ?",
            connection,
            params=(1,),
            parse_dates=["day"],
            dtype={"flag": "bool"},
        )
    pd.testing.assert_frame_equal(back, FRAME, check_dtype=False)
    with pytest.warns(UserWarning, match="pandas only supports SQLAlchemy"):
        named = pd.read_sql(
            "SELECT name FROM frame WHERE day < :day", connection, params={"day": datetime.date(2000, 1, 1)}
        )
    assert len(named) == 1
    with pytest.warns(UserWarning, match="pandas only supports SQLAlchemy"):
        parts = list(pd.read_sql("SELECT * FROM frame", connection, chunksize=2))
    assert [len(part) for part in parts] == [2, 1]
    assert not connection.in_transaction
