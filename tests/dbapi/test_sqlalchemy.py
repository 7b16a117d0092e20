"""SQLAlchemy over the dialect: Core, ORM, reflection, transactions."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects.sqlite import insert as upsert

import toondb
from tests.dbapi.conftest import Place
from toondb.sqlalchemy import ToonDialect, ToonUnixDialect


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(40), unique=True)
    books: orm.Mapped[list[Book]] = orm.relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str] = orm.mapped_column(index=True)
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id", ondelete="CASCADE"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


class Versioned(Base):
    __tablename__ = "versioned"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    value: orm.Mapped[str]
    version: orm.Mapped[int] = orm.mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


def engine_of(place: Place, **options: Any) -> sa.Engine:
    """An engine for a store, by URL."""
    query = {} if place.config is None else {name: str(value) for name, value in place.config.items()}
    return sa.create_engine(sa.URL.create("toondb", database=str(place.target), query=query), **options)


@pytest.fixture
def engine(place: Place) -> Iterator[sa.Engine]:
    engine = engine_of(place)
    yield engine
    engine.dispose()


def test_urls(tmp_path: Path) -> None:
    def arguments(url: str) -> Any:
        parsed = sa.make_url(url)
        return parsed.get_dialect()().create_connect_args(parsed)

    assert arguments("toondb:////var/data") == (["/var/data"], {"mode": None, "config": None})
    assert arguments("toondb:///data")[0] == ["data"]
    assert arguments("toondb:///data?mode=ipc&timeout=2.5&max_connections=4") == (
        ["data"],
        {"mode": "ipc", "config": {"timeout": 2.5, "max_connections": 4}},
    )
    assert arguments("toondb:///data?foreign_keys=true&sync_mode=off")[1]["config"] == {
        "foreign_keys": True,
        "sync_mode": "off",
    }
    for url in ("toondb+unix:///run/app.sock", "toondb+unix:////run/app.sock"):
        assert arguments(url) == (["/run/app.sock"], {"mode": "ipc", "config": None})
    assert sa.make_url("toondb+unix:///x").get_dialect() is ToonUnixDialect
    for url in ("toondb://", "toondb://host/data", "toondb://user@/data", "toondb:///data?mode=ipc&mode=ipc"):
        with pytest.raises(sa.exc.ArgumentError, match="the URL"):
            arguments(url)
    engine = sa.create_engine(f"toondb:///{tmp_path}/db?colour=red")
    with pytest.raises(sa.exc.ProgrammingError, match="'colour'"):
        engine.connect()
    engine = sa.create_engine(f"toondb+unix://{tmp_path}/no.sock")
    with pytest.raises(sa.exc.OperationalError, match=r"no\.sock"):
        engine.connect()


def test_the_dialect_is_that_of_sqlite(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert connection.dialect.server_version_info is not None
        assert connection.dialect.server_version_info >= (3, 46)
    assert isinstance(engine.dialect, ToonDialect)
    assert (engine.dialect.name, engine.dialect.driver) == ("sqlite", "toondb")


def test_values_of_every_type(engine: sa.Engine) -> None:
    metadata = sa.MetaData()
    table = sa.Table(
        "kinds",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("whole", sa.BigInteger),
        sa.Column("part", sa.Float),
        sa.Column("exact", sa.Numeric(10, 2)),
        sa.Column("flag", sa.Boolean),
        sa.Column("text", sa.Text),
        sa.Column("data", sa.LargeBinary),
        sa.Column("day", sa.Date),
        sa.Column("time", sa.Time),
        sa.Column("moment", sa.DateTime),
        sa.Column("json", sa.JSON),
        sa.Column("uuid", sa.Uuid),
        sa.Column("absent", sa.Text),
    )
    row = {
        "id": 1,
        "whole": 2**62,
        "part": 0.1,
        "exact": decimal.Decimal("12.34"),
        "flag": True,
        "text": "ü",
        "data": b"\0\xff",
        "day": datetime.date(2024, 2, 29),
        "time": datetime.time(1, 2, 3, 4),
        "moment": datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
        "json": {"a": [1, None, "x"]},
        "uuid": uuid.UUID(int=5),
        "absent": None,
    }
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), row)
    with engine.connect() as connection:
        assert dict(connection.execute(sa.select(table)).mappings().one()) == row
        assert connection.scalar(sa.select(table.c.json["a"][2].as_string())) == "x"
    metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names() == []


def test_core(engine: sa.Engine) -> None:
    metadata = sa.MetaData()
    table = sa.Table(
        "t", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer, unique=True)
    )
    metadata.create_all(engine)
    metadata.create_all(engine)
    with engine.begin() as connection:
        done = connection.execute(table.insert().values(n=5))
        assert done.inserted_primary_key == (1,)
        assert connection.execute(table.insert(), [{"n": n} for n in range(10, 20)]).rowcount == 10
        returned = connection.execute(table.insert().returning(table.c.id), [{"n": n} for n in range(20, 1300)])
        assert len(returned.scalars().all()) == 1280
        changed = connection.execute(table.update().where(table.c.n < 15).values(n=table.c.n + 10_000))
        assert changed.rowcount == 6
        statement = upsert(table).values(id=1, n=7)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"n": statement.excluded.n}))
        assert connection.execute(sa.select(table.c.n).where(table.c.id == 1)).scalar_one() == 7
        in_them = sa.select(sa.func.count()).where(table.c.id.in_(list(range(1, 1000))))
        assert connection.scalar(in_them) == 999
    with engine.connect() as connection:
        streamed = connection.execution_options(yield_per=100).execute(sa.select(table.c.id).order_by(table.c.id))
        assert [len(part) for part in streamed.partitions()] == [100] * 12 + [91]
        assert connection.execute(sa.select(table).where(sa.false())).all() == []
    with pytest.raises(sa.exc.IntegrityError) as caught, engine.begin() as connection:
        connection.execute(table.insert().values(n=7))
    assert isinstance(caught.value.orig, toondb.SqlConstraintError)
    with pytest.raises(sa.exc.ProgrammingError, match="no such table"), engine.connect() as connection:
        connection.execute(sa.text("SELECT * FROM nowhere"))


def test_orm(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Author(name="Ann", books=[Book(title="One"), Book(title="Two")]))
        session.add(Author(name="Bob", books=[Book(title="Three")]))
        session.commit()
    with orm.Session(engine) as session:
        ann = session.scalars(sa.select(Author).where(Author.name == "Ann")).one()
        assert [book.title for book in ann.books] == ["One", "Two"]
        joined = sa.select(Author.name, sa.func.count(Book.id)).join(Book).group_by(Author.id).order_by(Author.id)
        assert session.execute(joined).all() == [("Ann", 2), ("Bob", 1)]
        ann.books[0].title = "First"
        ann.books.pop()
        session.flush()
        session.rollback()
        assert [book.title for book in ann.books] == ["One", "Two"]

        with session.begin_nested():
            session.add(Author(name="Cyd"))
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(Author(name="Bob"))
            session.flush()
        session.commit()
        assert session.scalars(sa.select(Author.name).order_by(Author.id)).all() == ["Ann", "Bob", "Cyd"]

        session.delete(ann)
        session.commit()
        assert session.scalars(sa.select(Book.title)).all() == ["Three"]
        loaded = session.scalars(sa.select(Author).options(orm.selectinload(Author.books)).order_by(Author.id)).all()
        assert [len(author.books) for author in loaded] == [1, 0]


def test_a_stale_version_is_found(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Versioned(id=1, value="a"))
        session.commit()
        row = session.get_one(Versioned, 1)
        assert row.version == 1
        session.connection().exec_driver_sql("UPDATE versioned SET version = 7")
        row.value = "c"
        with pytest.raises(orm.exc.StaleDataError):
            session.flush()


def test_reflection(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE VIEW titles AS SELECT title FROM book"))
    inspector = sa.inspect(engine)
    assert inspector.get_table_names() == ["author", "book", "versioned"]
    assert inspector.get_view_names() == ["titles"]
    assert inspector.get_view_definition("titles") == "CREATE VIEW titles AS SELECT title FROM book"
    assert inspector.has_table("book")
    assert not inspector.has_table("nowhere")
    assert inspector.get_schema_names() == ["main"]
    columns = {column["name"]: column for column in inspector.get_columns("author")}
    assert isinstance(columns["name"]["type"], sa.VARCHAR)
    assert columns["name"]["nullable"] is False
    assert inspector.get_pk_constraint("author")["constrained_columns"] == ["id"]
    (foreign,) = inspector.get_foreign_keys("book")
    assert (foreign["referred_table"], foreign["constrained_columns"]) == ("author", ["author_id"])
    assert foreign["options"] == {"ondelete": "CASCADE"}
    assert [index["name"] for index in inspector.get_indexes("book")] == ["ix_book_title"]
    assert inspector.get_unique_constraints("author")[0]["column_names"] == ["name"]
    reflected = sa.MetaData()
    reflected.reflect(engine)
    assert reflected.tables["book"].c.author_id.references(reflected.tables["author"].c.id)


def test_isolation_levels(engine: sa.Engine, place: Place) -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("a", sa.Integer))
    table.create(engine)
    count = sa.select(sa.func.count()).select_from(table)
    with engine.connect() as one, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as alone:
        # The names of the levels that SQLAlchemy knows are not all that there are.
        assert str(one.get_isolation_level()) == str(one.default_isolation_level) == "SNAPSHOT"
        assert alone.get_isolation_level() == "AUTOCOMMIT"
        assert one.scalar(count) == 0
        alone.execute(table.insert().values(a=1))
        assert one.scalar(count) == 0
        one.rollback()
        assert one.scalar(count) == 1
    with engine.connect() as again:
        assert str(again.get_isolation_level()) == "SNAPSHOT"
    serializable = engine_of(place, isolation_level="SERIALIZABLE")
    with serializable.connect() as one:
        assert one.get_isolation_level() == "SERIALIZABLE"
        with pytest.raises(sa.exc.ArgumentError, match="SNAPSHOT, SERIALIZABLE, AUTOCOMMIT"):
            one.execution_options(isolation_level="READ COMMITTED")
    serializable.dispose()


def test_a_conflict_can_be_told(engine: sa.Engine) -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("a", sa.Integer))
    table.create(engine)
    with engine.connect() as one, engine.connect() as two:
        one.execute(table.insert().values(a=1))
        two.execute(table.insert().values(a=2))
        one.commit()
        with pytest.raises(sa.exc.OperationalError) as caught:
            two.commit()
        assert isinstance(caught.value.orig, toondb.TransactionConflictError)
        assert not caught.value.connection_invalidated
        two.rollback()
        two.execute(table.insert().values(a=2))
        two.commit()
        assert two.scalars(sa.select(table.c.a).order_by(table.c.a)).all() == [1, 2]


def test_a_connection_that_is_gone_is_replaced(tmp_path: Path) -> None:
    engine = sa.create_engine(f"toondb:///{tmp_path}/db?sync_mode=off")
    with engine.connect() as connection:
        connection.connection.store.close()  # as if the daemon had ended
        with pytest.raises(sa.exc.ProgrammingError) as caught:
            connection.execute(sa.text("SELECT 1"))
        assert caught.value.connection_invalidated
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()
