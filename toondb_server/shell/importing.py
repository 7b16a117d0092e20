"""Loading CSV and JSON lines into a table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from toondb_protocol.errors import (
    ConfigurationError,
    FrameTooLargeError,
    SqlError,
    SqlInterruptedError,
    ToonDBError,
    TransactionConflictError,
    TransactionExpiredError,
    TransactionTooLargeError,
    ValidationError,
)

from .inference import TextColumn, ValueColumn
from .progress import RowProgress
from .records import Record, Source, csv_records, format_of, json_records
from .session import Session

__all__ = ["ImportOptions", "ImportReport", "import_rows", "quoted"]

Row: TypeAlias = "tuple[int, int, tuple[str, ...], list[Any]]"

_BATCH_BYTES = 1024 * 1024
_ATTEMPTS = 5
_TOLD = 20
_SAVEPOINT = "toondb_import"
_BLOB = re.compile(r"[xX]'((?:[0-9a-fA-F]{2})*)'").fullmatch
_TRUTH = {"true": 1, "false": 0}
_COMMIT_ROWS_HELP = "Import it in parts with --commit-rows, which are kept even when a later one fails."


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What to import, and how.

    Args:
        path: The file; ``-`` is standard input.
        table: The table.
        format: ``csv``, ``jsonl`` or ``auto``, which goes by the name of the file.
        create: Create the table when it is missing.
        columns: The columns that the fields go to, in the order of the file, in the place of its header; of JSON the
            keys to take. Empty = those of the file.
        header: The first record of CSV has the names of the columns.
        null: The text of a CSV field that is NULL, when it is not quoted.
        delimiter: Between the fields of CSV.
        conflict: What a row does that breaks a constraint: ``abort``, ``replace`` or ``ignore``.
        skip: Leave out rows that cannot be imported.
        batch: Rows that are sent at once.
        commit_rows: Commit after so many rows; 0 = all rows are one transaction.
    """

    path: str
    table: str
    format: str = "auto"
    create: bool = False
    columns: Sequence[str] = ()
    header: bool = True
    null: str = ""
    delimiter: str = ","
    conflict: str = "abort"
    skip: bool = False
    batch: int = 1000
    commit_rows: int = 0


@dataclass(slots=True)
class ImportReport:
    """What was imported.

    Attributes:
        table: The table.
        rows: Rows that are in the table now.
        ignored: Rows that ``ignore`` left out.
        skipped: Rows that could not be imported and were left out.
        created: Whether the table was created.
        errors: Why the first of them were skipped.
    """

    table: str
    rows: int = 0
    ignored: int = 0
    skipped: int = 0
    created: bool = False
    errors: list[str] = field(default_factory=list)


class _Column(NamedTuple):
    name: str
    declared: str


Known: TypeAlias = dict[str, _Column]
"""The columns of a table by their names in lower case."""


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def import_rows(session: Session, options: ImportOptions, progress: RowProgress) -> ImportReport:
    """Import a file into a table.

    All rows are one transaction (or that of the session, when one is open), unless ``commit_rows`` says otherwise.

    Args:
        session: The session.
        options: What to import, and how.
        progress: Is told how far it is.

    Raises:
        ValidationError, SqlError: A record cannot be imported; the message begins with the file and the line.
        TransactionConflictError: Others kept changing tables meanwhile, or did so in the session's transaction.
        OSError: The file cannot be read.
    """
    file_format = format_of(options.path, options.format)
    if session.in_transaction and options.commit_rows:
        raise ConfigurationError("--commit-rows cannot be given inside a transaction.")
    with Source(options.path, rewindable=options.create or not options.commit_rows) as source:
        return _Import(session, options, progress, source, file_format).run()


class _Import:
    """One import."""

    def __init__(
        self, session: Session, options: ImportOptions, progress: RowProgress, source: Source, file_format: str
    ) -> None:
        self._session = session
        self._options = options
        self._progress = progress
        self._source = source
        self._csv = file_format == "csv"
        self._report = ImportReport(options.table)
        self._errors: list[tuple[int, str]] = []
        self._verb = {"abort": "INSERT", "replace": "INSERT OR REPLACE", "ignore": "INSERT OR IGNORE"}[options.conflict]

    def run(self) -> ImportReport:
        """Import everything."""
        declared = self._columns_of_table()
        created = not declared
        names: list[str] = []
        if created:
            if not self._options.create:
                raise SqlError(
                    f"there is no table {self._options.table!r}.",
                    remediation="Create it first, or with --create, which takes the types from the values.",
                )
            declared = self._inferred()
        known = {column.name.lower(): column for column in declared}
        if self._csv:
            names = self._csv_names([column.name for column in declared])
            self._check_known(names, known, 1 if self._options.header and not self._options.columns else 0)
        elif self._options.columns:
            self._check_known(self._options.columns, known, 0)
        create = self._create_statement(declared) if created else ""
        try:
            if self._session.in_transaction:
                self._in_open_transaction(create, names, known)
            elif self._options.commit_rows:
                self._in_parts(create, names, known)
            else:
                self._again_on_conflict(lambda: self._load(self._rows(names, known), create))
        except (TransactionTooLargeError, TransactionExpiredError) as error:
            error.remediation = _COMMIT_ROWS_HELP
            raise
        self._report.errors += [f"{self._source.name}:{line}: {error}" for line, error in sorted(self._errors)]
        return self._report

    # Columns

    def _columns_of_table(self) -> list[_Column]:
        # Hidden ones are of virtual tables, 2 and 3 are generated.
        found = self._session.rows_of(
            "SELECT name, type FROM pragma_table_xinfo(?) WHERE hidden = 0", [self._options.table]
        )
        return [_Column(name, declared or "") for name, declared in found]

    def _create_statement(self, columns: list[_Column]) -> str:
        described = ", ".join(f"{quoted(name)} {declared}".rstrip() for name, declared in columns)
        return f"CREATE TABLE {quoted(self._options.table)} ({described})"

    def _records(self) -> Iterator[Record]:
        lines = self._source.lines()
        return csv_records(lines, self._options.delimiter, self._options.null) if self._csv else json_records(lines)

    def _csv_names(self, of_table: list[str]) -> list[str]:
        """The columns that the fields go to."""
        options = self._options
        if options.columns:
            return list(options.columns)
        if not options.header:
            return of_table
        first = next(self._records(), None)
        if first is None:
            raise ValidationError(
                f"{self._source.name} is empty.", remediation="It needs a header, or --columns with --no-header."
            )
        if first.error:
            raise ValidationError(f"{self._source.name}:1: {first.error}.")
        names: list[str] = []
        for at, name in enumerate(first.values, 1):
            if not name:
                raise ValidationError(f"{self._source.name}:1: column {at} of the header has no name.")
            names.append(name)
        return names

    def _check_known(self, names: Sequence[str], known: Known, line: int) -> None:
        place = f"{self._source.name}:{line}: " if line else ""
        seen: set[str] = set()
        for name in names:
            if name.lower() in seen:
                raise ValidationError(f"{place}the column {name!r} is named twice.")
            seen.add(name.lower())
            if name.lower() not in known:
                raise ValidationError(
                    f"{place}the table {self._options.table!r} has no column {name!r}; it has: "
                    f"{', '.join(column.name for column in known.values())}.",
                    remediation="Name the columns with --columns, and give --no-header when the first line is a row.",
                )

    def _inferred(self) -> list[_Column]:
        """The columns of a new table, by all values of the file."""
        self._progress.restart("looking at")
        text: list[TextColumn] = []
        names = list(self._options.columns)
        by_name: dict[str, ValueColumn] = {name: ValueColumn() for name in names}
        rows = size = 0
        skip_header = self._csv and self._options.header
        for record in self._records():
            rows += 1
            size += record.size
            self._progress(rows, size, self._source.size)
            if record.error:
                if not self._options.skip:
                    raise self._refused(record.line, record.error)
                continue
            if not self._csv:
                for name, value in record.values.items():
                    column = by_name.get(name)
                    if column is None and not self._options.columns:
                        column = by_name[name] = ValueColumn()
                    if column is not None:
                        column.see(value)
                continue
            if skip_header:
                skip_header = False
                names = names or self._csv_names([])
                text = [TextColumn() for _ in names]
                continue
            if not names:
                names = [f"c{at}" for at in range(1, len(record.values) + 1)]
            if not text:
                text = [TextColumn() for _ in names]
            for kind, value in zip(text, record.values, strict=False):
                kind.see(value)
        if self._csv and not text:
            names = names or self._csv_names([])
            text = [TextColumn() for _ in names]
        found = (
            [_Column(name, kind.declared) for name, kind in zip(names, text, strict=True)]
            if self._csv
            else [_Column(name, kind.declared) for name, kind in by_name.items()]
        )
        if not found:
            raise ValidationError(f"{self._source.name} is empty, so it tells no columns to create.")
        return found

    # Rows

    def _refused(self, line: int, error: str) -> ValidationError:
        return ValidationError(f"{self._source.name}:{line}: {error}.", remediation=_SKIP_HELP)

    def _rows(self, names: list[str], known: Known) -> Iterator[Row]:
        """(line, bytes, columns, values) of each record; those with an error are skipped, or end it."""
        columns = tuple(names)
        converters = [_converter(known[name.lower()].declared) for name in names] if self._csv else []
        special = [(at, convert) for at, convert in enumerate(converters) if convert is not None]
        wanted = {name.lower() for name in self._options.columns}
        records = self._records()
        if self._csv and self._options.header:
            next(records, None)
        for line, size, values, error in records:
            if self._csv and not error:
                if len(values) != len(columns):
                    if values in ([None], [""]):
                        continue  # an empty line
                    error = f"it has {len(values)} fields, and there are {len(columns)} columns"
                else:
                    for at, convert in special:
                        values[at] = convert(values[at])
            elif not error:
                if wanted:
                    values = {name: value for name, value in values.items() if name.lower() in wanted}
                unknown = next((name for name in values if name.lower() not in known), None)
                if unknown is not None:
                    error = f"the table {self._options.table!r} has no column {unknown!r}"
            if error:
                if not self._options.skip:
                    raise self._refused(line, error)
                self._skip(line, error)
            elif self._csv:
                yield line, size, columns, values
            else:
                yield line, size, tuple(values), list(values.values())

    def _skip(self, line: int, error: str) -> None:
        self._report.skipped += 1
        if len(self._errors) < _TOLD:
            self._errors.append((line, error))

    # Transactions

    def _in_open_transaction(self, create: str, names: list[str], known: Known) -> None:
        with self._session.runner() as runner:
            runner.execute_sql(f"SAVEPOINT {_SAVEPOINT}")
            try:
                self._load(self._rows(names, known), create)
            except BaseException:
                # Where the whole transaction is over, there is nothing left to undo.
                with contextlib.suppress(ToonDBError):
                    runner.execute_sql(f"ROLLBACK TO {_SAVEPOINT}")
                    runner.execute_sql(f"RELEASE {_SAVEPOINT}")
                raise
            runner.execute_sql(f"RELEASE {_SAVEPOINT}")

    def _in_parts(self, create: str, names: list[str], known: Known) -> None:
        rows = self._rows(names, known)
        while True:
            part = list(islice(rows, self._options.commit_rows))
            if part or create:
                self._again_on_conflict(self._loading(part, create))
            create = ""
            if len(part) < self._options.commit_rows:
                return

    def _loading(self, part: list[Row], create: str) -> Callable[[], None]:
        return lambda: self._load(iter(part), create)

    def _again_on_conflict(self, load: Callable[[], None]) -> None:
        report = self._report
        before = (report.rows, report.ignored, report.skipped, len(self._errors))
        for attempt in range(1, _ATTEMPTS + 1):
            self._session.begin()
            try:
                load()
                self._session.commit()
                return
            except TransactionConflictError:
                if attempt == _ATTEMPTS:
                    raise
            finally:
                if self._session.in_transaction:
                    self._session.rollback()
            report.rows, report.ignored, report.skipped, told = before
            del self._errors[told:]

    # Loading

    def _load(self, rows: Iterator[Row], create: str) -> None:
        """Put rows into the table, inside the transaction that is open."""
        report, options = self._report, self._options
        self._progress.restart("importing")
        if create:
            self._execute(create)
            report.created = True
        done = 0
        batch: list[Row] = []
        size = 0
        for row in rows:
            if batch and (row[2] != batch[0][2] or len(batch) >= options.batch or size >= _BATCH_BYTES):
                self._insert(batch)
                done += size
                batch, size = [], 0
                self._progress(report.rows, done, self._source.size)
            batch.append(row)
            size += row[1]
        if batch:
            self._insert(batch)

    def _insert(self, batch: list[Row]) -> None:
        columns = batch[0][2]
        statement = f"{self._verb} INTO {quoted(self._options.table)} "
        if columns:
            names, marks = ", ".join(map(quoted, columns)), ", ".join("?" * len(columns))
            statement += f"({names}) VALUES ({marks})"
        else:
            statement += "DEFAULT VALUES"
        values = [row[3] for row in batch]
        try:
            affected = self._run(lambda runner: runner.executemany(statement, values)).rows_affected
        except SqlInterruptedError:
            raise
        except (SqlError, ValidationError, FrameTooLargeError):
            # Nothing of the batch was kept: which row it was shows when they come one by one.
            self._insert_each(batch, statement)
            return
        self._count(len(batch), affected)

    def _insert_each(self, batch: list[Row], statement: str) -> None:
        for line, _, _, values in batch:
            try:
                affected = self._execute(statement, values)
            except SqlInterruptedError:
                raise
            except (SqlError, ValidationError, FrameTooLargeError) as error:
                if not self._options.skip:
                    error.message = f"{self._source.name}:{line}: {error.message}"
                    raise
                self._skip(line, error.message.rstrip("."))
            else:
                self._count(1, affected)

    def _count(self, rows: int, affected: int) -> None:
        ignored = max(0, rows - affected) if self._options.conflict == "ignore" else 0
        self._report.rows += rows - ignored
        self._report.ignored += ignored

    def _execute(self, statement: str, values: list[Any] | None = None) -> int:
        return int(self._run(lambda runner: runner.execute_sql(statement, values)).rows_affected)

    def _run(self, action: Callable[[Any], Any]) -> Any:
        with self._session.runner() as runner:
            return action(runner)


_SKIP_HELP = "Correct it, or leave such rows out with --on-error skip."


def _converter(declared: str) -> Callable[[Any], Any] | None:
    """What makes a value of a CSV field, where SQLite would not do it by the type of the column."""
    kind = declared.upper()
    if "BLOB" in kind:
        return _as_blob
    if kind.startswith("BOOL"):
        return _as_boolean
    return None


def _as_blob(text: str | None) -> bytes | str | None:
    found = _BLOB(text) if text is not None else None
    return bytes.fromhex(found[1]) if found else text


def _as_boolean(text: str | None) -> int | str | None:
    return _TRUTH.get(text.lower(), text) if text is not None else None
