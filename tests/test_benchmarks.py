"""The harness of the benchmarks: its arithmetic, its reports and its worker processes. No timing is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main, select_rows
from benchmarks.children import ChildError, Children, project_environment
from benchmarks.crew import Crew, CrewError
from benchmarks.drivers import DRIVERS, DriverError
from benchmarks.embedded import EMBEDDED
from benchmarks.machine import describe_machine
from benchmarks.report import CellResult, RowResult, format_row, format_verdicts, judge, to_json, write_json
from benchmarks.rows import ROWS, Cell, Row, Target
from benchmarks.run import Effort, run_rows
from benchmarks.servers import Servers, missing
from benchmarks.sql import SQL_ROWS
from benchmarks.sql_drivers import SQL_DRIVERS, SqliteDriver, WrongAnswerError
from benchmarks.sql_measure import failure
from benchmarks.sql_tables import SqlTables
from benchmarks.timing import Samples, ratios, turns
from benchmarks.vector_data import STAND_INS, VectorData, labelled, recall
from benchmarks.vector_drivers import VECTOR_DRIVERS
from benchmarks.vector_plot import plot_curve
from benchmarks.vectors import CURVE, VECTOR_ROWS
from benchmarks.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
SMALL = Workload(keys=1000, value_size=20)
ECHO_ROW = Row(
    "echo",
    "Echo",
    (Cell("one", "echo", "echo", "get"), Cell("two", "echo", "echo", "get", 2)),
    (Target("one against two", "one", 1e-9, "two"),),
    one_core=True,
)


def test_samples_summarise() -> None:
    samples = Samples((3.0, 1.0, 2.0))
    assert (samples.median, samples.min, samples.max) == (2.0, 1.0, 3.0)
    assert samples.to_dict() == {"median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}
    with pytest.raises(ValueError, match="at least one"):
        Samples(())


def test_ratio_is_taken_within_each_round() -> None:
    # The machine halves its speed in the second round: the medians' ratio would be 30/20, the truth is 2.
    fast, slow = Samples((40.0, 20.0, 30.0)), Samples((20.0, 10.0, 15.0))
    assert ratios(fast, slow).values == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="rounds"):
        ratios(fast, Samples((1.0,)))
    with pytest.raises(ValueError, match="not positive"):
        ratios(fast, Samples((1.0, 0.0, 1.0)))


def test_turns_alternate_direction() -> None:
    assert list(turns("AB", 3)) == [(0, "A"), (0, "B"), (1, "B"), (1, "A"), (2, "A"), (2, "B")]


def _result(*, ours: CellResult, theirs: CellResult) -> RowResult:
    row = Row(
        "x",
        "X",
        (Cell("ours", "toondb"), Cell("theirs", "redis")),
        (
            Target("ratio", "ours", 2.0, "theirs"),
            Target("absolute", "ours", 100.0),
            Target("at most", "ours", 100.0, at_most=True),
        ),
    )
    return RowResult(row, (ours, theirs))


def test_judge_passes_and_misses() -> None:
    result = _result(
        ours=CellResult("ours", Samples((50.0, 60.0, 70.0))),
        theirs=CellResult("theirs", Samples((20.0, 30.0, 70.0))),
    )
    verdicts = judge([result])
    assert [(verdict.measured, verdict.status) for verdict in verdicts] == [
        (2.0, "pass"),
        (60.0, "MISS"),
        (60.0, "pass"),
    ]


def test_judge_does_not_judge_what_is_missing() -> None:
    result = _result(ours=CellResult("ours", Samples((50.0,))), theirs=CellResult("theirs", status="not installed"))
    assert [verdict.status for verdict in judge([result])] == ["not measured", "MISS", "pass"]
    result = _result(ours=CellResult("ours", status="failed: no daemon"), theirs=CellResult("theirs", Samples((1.0,))))
    assert [verdict.passed for verdict in judge([result])] == [None, None, None]
    text = format_row(result) + format_verdicts(judge([result]))
    assert "failed: no daemon" in text
    assert "not measured" in text


def test_report_shows_and_writes_results(tmp_path: Path) -> None:
    result = _result(
        ours=CellResult("ours", Samples((120_000.0,)), server_cpu_us=Samples((7.25,))),
        theirs=CellResult("theirs", Samples((60_000.0,))),
    )
    text = format_row(result)
    assert "120,000/s" in text
    assert "x 2.00" in text
    assert "7.2 us server CPU" in text
    path = tmp_path / "new" / "report.json"
    write_json(path, to_json({"cpu": "c"}, {"quick": True}, [result], "20260101T000000Z"))
    document = json.loads(path.read_text())
    assert document["version"] == 1
    assert document["machine"] == {"cpu": "c"}
    assert document["rows"][0]["cells"][0]["samples"]["values"] == [120_000.0]
    assert [target["status"] for target in document["targets"]] == ["pass", "pass", "miss"]


def test_rows_are_consistent() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        labels = [cell.label for cell in row.cells]
        assert len(set(labels)) == len(labels), row.name
        for cell in row.cells:
            missing(cell.server, cell.driver)  # raises for a server that nobody knows
            known = cell.driver in {**DRIVERS, **EMBEDDED, **SQL_DRIVERS, **VECTOR_DRIVERS}
            assert known == (row.measure not in ("memory", "start"))
        for target in row.targets:
            assert target.cell in labels, row.name
            assert target.baseline is None or target.baseline in labels, row.name


def test_only_selects_by_pattern_in_the_order_of_the_rows() -> None:
    assert [row.name for row in select_rows(["scan", "get-*"])] == [
        "get-1",
        "get-1-any-core",
        "get-8",
        "get-32",
        "scan",
    ]
    with pytest.raises(ValueError, match="no row 'nope'"):
        select_rows(["nope"])


def test_list_names_every_row() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--list"],
        cwd=ROOT,
        env=project_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [row.name for row in ROWS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nope"], "there is no row 'nope'"),
        (["--rounds", "0"], "--rounds >= 1"),
        (["--dir", "/nonexistent"], "is not a folder"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_machine_description(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert {"cpu", "cores", "memory_mb", "kernel", "python", "libraries", "filesystem", "fsync"} <= set(machine)
    assert machine["filesystem"] != "unknown"
    assert list(tmp_path.iterdir()) == []


def test_workload_is_the_same_for_the_same_seed() -> None:
    assert SMALL.sample(1, 50) == SMALL.sample(1, 50) != SMALL.sample(2, 50)
    records = dict(SMALL.records())
    assert len(records) == 1000
    assert records[b"user:00000999"] == b"v" * 20
    assert set(SMALL.sample(3)) <= set(records)


def test_crew_runs_a_contestant_and_every_process_ends(tmp_path: Path) -> None:
    results: list[RowResult] = []
    run_rows(
        [ECHO_ROW],
        workload=SMALL,
        effort=Effort(rounds=2, seconds=0.01, warm_up=0.01, starts=1),
        data=tmp_path,
        sockets=tmp_path,
        report=results.append,
    )
    (result,) = results
    assert [cell.status for cell in result.cells] == ["ok", "ok"]
    assert all(cell.samples is not None and cell.samples.min > 0 for cell in result.cells)
    assert [verdict.status for verdict in judge(results)] == ["pass"]


def test_a_failing_operation_is_reported_and_the_crew_goes_on(tmp_path: Path) -> None:
    with Children(tmp_path) as children, Crew(children, SMALL) as crew:
        child, address = Servers(children, tmp_path, tmp_path, SMALL).start("echo")
        assert child is not None
        crew.open("echo", "echo", address, 2)
        with pytest.raises(CrewError, match="no operation 'scan'"):
            crew.run("echo", "scan", 0.01, 2)
        rate, count = crew.run("echo", "get", 0.01, 2)
        assert rate > 0
        assert count >= 2
        children.stop(child)
        assert child.process.returncode == 0
        with pytest.raises(CrewError):
            crew.run("echo", "get", 0.01, 2)


def test_a_server_that_ends_early_is_explained(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        with pytest.raises(ChildError, match="ended before it was ready: out of luck"):
            children.start([sys.executable, "-c", "print('out of luck')"], label="server", ready_timeout=30.0)
        with pytest.raises(ChildError, match="could not be started"):
            children.start(["/nonexistent/program"], label="server", ready_timeout=30.0)


def test_sql_rows_run_and_are_judged(tmp_path: Path) -> None:
    results: list[RowResult] = []
    sockets = tmp_path / "s"
    sockets.mkdir()
    run_rows(
        SQL_ROWS,
        workload=SMALL,
        effort=Effort(rounds=1, seconds=0.01, warm_up=0.001, starts=1),
        data=tmp_path,
        sockets=sockets,
        report=results.append,
    )
    assert [result.row for result in results] == list(SQL_ROWS)
    for result in results:
        for cell in result.cells:
            if "sochdb" in cell.label:
                continue  # a peer that need not be there, and cannot do everything
            assert cell.status == "ok", (result.row.name, cell)
            assert cell.samples is not None
    verdicts = judge(results)
    assert [verdict.target.limit for verdict in verdicts] == [0.6, 0.7, 0.5, 1 / 3, 0.8, 1.5]
    assert all(verdict.measured is not None for verdict in verdicts)


def test_a_peer_that_answers_wrongly_is_no_failure_of_the_run() -> None:
    assert failure(CrewError("WrongAnswerError: 1 gave 2")) == "cannot do it: 1 gave 2"
    assert failure(CrewError("worker 0 ended early")) == "failed: worker 0 ended early"


def test_a_wrong_answer_to_sql_is_found_before_anything_is_timed(tmp_path: Path) -> None:
    driver = SqliteDriver(str(tmp_path), SMALL, 1)
    try:
        assert driver.loop("aggregate")(0.0) == 10 * SMALL.keys
        driver.loop("point")
        driver._change("UPDATE people SET score = -1")
        driver._change("DELETE FROM big WHERE id = 7")
        for operation in ("point", "aggregate"):
            with pytest.raises(WrongAnswerError, match="instead of"):
                driver.loop(operation)
        with pytest.raises(DriverError, match="no operation 'nope'"):
            driver.loop("nope")
    finally:
        driver.close()


def test_sql_tables_hold_what_they_say() -> None:
    tables = SqlTables(SMALL)
    batches = list(tables.batches("big"))
    assert [len(batch) for batch in batches] == [1000] * 10
    assert batches[3][5] == tables.person(3005)
    for count in (1, 999, 1000, 2345):
        assert tables.score_sum(count) == pytest.approx(sum(row[3] for row in tables.people(0, count)))
    assert len(next(tables.batches("documents"))) == tables.size("documents") == 200
    assert tables.searches(1) == tables.searches(1) != tables.searches(2)


def test_vector_rows_run_and_are_judged(tmp_path: Path) -> None:
    results: list[RowResult] = []
    sockets = tmp_path / "s"
    sockets.mkdir()
    run_rows(
        VECTOR_ROWS,
        workload=SMALL,
        effort=Effort(rounds=1, seconds=0.001, warm_up=0.0001, starts=1),
        data=tmp_path,
        sockets=sockets,
        report=results.append,
    )
    assert [result.row.name for result in results] == [row.name for row in VECTOR_ROWS]
    for result in results:
        for cell in result.cells:
            if "sochdb" in cell.label or "hnswlib" in cell.label:
                assert cell.status in ("ok", "not installed"), (result.row.name, cell)
                continue  # a peer that need not be there
            assert cell.status == "ok", (result.row.name, cell)
            assert cell.samples is not None
            assert (cell.recall is not None) == result.row.recall
    for verdict in judge(results):
        peer = verdict.target.baseline or ""
        assert verdict.measured is not None or "sochdb" in peer or "hnswlib" in peer
        if verdict.target.recall:
            assert verdict.passed, verdict  # so few documents are compared one by one
    assert plot_curve(results, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_curve([result for result in results if result.row.name != CURVE], tmp_path / "none.png")


def test_vector_rows_say_when_their_data_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in VECTOR_ROWS if row.name == "vector-search")
    monkeypatch.setattr("benchmarks.vector_data.are_made", lambda: False)
    assert STAND_INS in labelled(row).title
    assert all(STAND_INS in target.text for target in labelled(row).targets)
    made_up = VectorData(SMALL)
    assert made_up.vectors.shape == (200, 384)
    assert len(made_up.texts) == 200
    assert len(made_up.questions) == len(made_up.queries) == 20
    monkeypatch.setattr("benchmarks.vector_data.are_made", lambda: True)
    assert labelled(row) is row


def test_recall_counts_what_is_as_near_as_the_truth() -> None:
    data = VectorData(SMALL)
    vectors, queries = data.random
    truth = (-(queries[:5] @ vectors.T)).argsort(axis=1)
    assert recall(truth[:, :10].tolist(), vectors, queries) == 1.0
    assert recall(truth[:, 5:15].tolist(), vectors, queries) == 0.5
    assert recall([[row[0]] * 10 for row in truth.tolist()], vectors, queries) == 0.1  # each counts once
    few = truth[0, :3]
    assert recall([few.tolist()], vectors, queries, among=few) == 1.0
    assert recall([[int(truth[0, 4])]], vectors, queries, among=few) == 0.0
