"""Tables, figures and records from made-up measurements."""

import dataclasses
import json

import pytest

from benchmarks import against, harness, markdown, scaling, speed

FACTS = {"device": "a card", "jax": "1.0", "xla_flags": "--flag", "commit": "abc"}
SPEEDS = {"ms": 55.3, "images_s": 200.0, "limit_ms": 27.65, "mfu": 0.5}
SPEEDS |= {"model_tflop": 25.7, "xla_tflop": 30.2, "matmul_tflops": 700.0}
SPEEDS |= {"peak_gb": 20.04, "program_gb": 19.0, "cold_compile_s": 41.4}
SPEEDS |= {"at_once": 5, "warm_compile_s": 3.21}


COUNTED = {"limit_ms", "mfu", "model_tflop", "xla_tflop"}


def written(path, *rows: dict):
    """A results file of these rows, each with its environment."""
    for row in rows:
        harness.append(path, {**FACTS, "rows": [row]})
    return path


def measured(case, **changed) -> dict:
    return {"case": case.label, **dataclasses.asdict(case), **SPEEDS, **changed}


def test_the_table_renders_from_a_record(tmp_path):
    names = {row.case.name: row for row in speed.ROWS}
    done, broken = names["pixnerd-train-32"], names["pixelgen-train-32"]
    path = written(
        tmp_path / "speed.jsonl",
        measured(done.case),
        {"case": broken.case.name, "failed": "out of memory"},
        {"case": done.case.name, "failed": "no time was left"},
    )
    text = speed.render(speed.newest(harness.read(path)))
    lines = text.splitlines()
    assert len(lines) == 2 + len(speed.ROWS) + 2
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert "**55.3 ms**" in cells and "2.00" in cells and "27.65 ms" in cells
    assert "50.0 %" in cells and "41 (5 at once)" in cells and "3.2" in cells
    assert cells[-3:-1] == ["25.7", "30.2"]
    assert "failed: out of memory" in lines[3]
    assert "a card" in lines[-1] and "abc" in lines[-1]


def test_operations_counted_elsewhere_give_limit_and_share():
    row = next(row for row in speed.ROWS if row.case.name == "pixelgen-full-32")
    own = {k: v for k, v in measured(row.case).items() if k not in COUNTED}
    counts = {row.case.name: {"model_tflop": 7.0, "xla_tflop": 8.0}}
    text = speed.render({row.case.name: {**FACTS, **own}}, counts)
    assert "| 10 ms | 18.1 % |" in text and "| 7.0 | 8.0 |" in text
    assert "**55.3 ms** | 2.64 |  |  |" in speed.render(
        {row.case.name: {**FACTS, **own}}
    )


def test_rows_of_another_commit_are_named():
    rows = [{**FACTS, "case": name} for name in "abc"]
    rows[1] = {**rows[1], "commit": "other"}
    text = markdown.source(rows)
    assert text == (
        "Measured on a card, jax 1.0, `--flag`, commit abc; "
        "`b`: a card, jax 1.0, `--flag`, commit other."
    )


def test_rates_and_images_have_their_own_ratio():
    by_name = {row.case.name: row for row in speed.ROWS}
    row = by_name["pixelflow-train-16"]
    assert "8.93" in speed.line(row, measured(row.case))  # 200 images/s, not 22.4
    row = by_name["pixelflow-4x30-16"]
    ours = speed.line(row, measured(row.case, ms=16e3, peak_gb=None))
    assert "**1 s/image**" in ours and "4.00" in ours


def test_every_row_has_a_name_of_its_own_and_patterns_choose():
    names = [row.case.name for row in speed.ROWS]
    assert len(set(names)) == len(names) == 11
    names = [row.case.name for row in speed.ROWS]
    chosen = speed.matching(names, ["pixnerd-*", "pixelgen-full-32"])
    assert chosen == [
        name
        for name in names
        if name.startswith("pixnerd") or name == "pixelgen-full-32"
    ]
    with pytest.raises(SystemExit, match="pixnerd-train-32"):
        speed.matching(names, ["nothing"])


def test_a_document_is_filled_between_its_marks(tmp_path):
    path = tmp_path / "R.md"
    path.write_text("a\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nb\n")
    markdown.fill(path, "speed", "new")
    assert path.read_text() == (
        "a\n<!-- speed: begin -->\nnew\n<!-- speed: end -->\nb\n"
    )
    with pytest.raises(ValueError, match="scaling"):
        markdown.fill(path, "scaling", "new")


@pytest.mark.parametrize("name", ["speed", "scaling"])
def test_the_results_have_a_place_for_each_table(name, tmp_path):
    copy = tmp_path / "RESULTS.md"
    copy.write_text((harness.ROOT / "benchmarks" / "RESULTS.md").read_text())
    markdown.fill(copy, name, "here")
    assert "here" in copy.read_text()


def scaled(path, monkeypatch, *options: str):
    """The arguments of `scaling` on a record of all cases, the largest batch failed."""
    for name in scaling.AXES:
        for value, case in scaling.axis(name).items():
            row = measured(case)
            if (name, value) == ("batch", 256):
                row = {k: row[k] for k in row if k not in SPEEDS}
                row["failed"] = harness.NO_MEMORY
            written(path, row)
    monkeypatch.setattr("sys.argv", ["scaling", "--json", str(path), *options])
    return scaling.arguments()


def test_scaling_renders_and_says_what_did_not_fit(tmp_path, monkeypatch):
    args = scaled(tmp_path / "scaling.jsonl", monkeypatch)
    text = scaling.render(scaling.measured(args))
    assert "| 256 | 256 | out of memory |" in text
    assert "| 1024 | 2 | 200 | 55.3 | 50.0 % |" in text
    assert "| 36 | 32 |" in text


def test_scaling_reads_what_earlier_versions_recorded(monkeypatch):
    monkeypatch.setattr("sys.argv", ["scaling"])
    points = scaling.measured(scaling.arguments())
    for name in scaling.AXES:
        assert points[name].keys() == scaling.axis(name).keys()


def test_scaling_draws_from_the_record_alone(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "scaling.png"
    path = tmp_path / "scaling.jsonl"
    scaled(path, monkeypatch, "--plot", "--figure", str(figure))
    scaling.main()
    assert figure.stat().st_size > 10_000


def test_records_are_one_line_each(tmp_path):
    path = written(tmp_path / "new" / "r.jsonl", {"case": "a"}, {"case": "b"})
    assert [json.loads(line)["rows"] for line in path.read_text().splitlines()] == [
        [{"case": "a"}],
        [{"case": "b"}],
    ]
    assert [row["case"] for row in harness.read(path)] == ["a", "b"]
    assert harness.read(tmp_path / "absent.jsonl") == []


def test_the_commit_is_told_without_git(monkeypatch):
    monkeypatch.setattr(harness, "_git", lambda *_: "")
    monkeypatch.setenv("COMMIT", "1234")
    assert harness.commit() == "1234"
    monkeypatch.delenv("COMMIT")
    answers = {"rev-parse": "abc", "status": " M file.py"}
    monkeypatch.setattr(harness, "_git", lambda _, first, *rest: answers[first])
    assert harness.commit() == "abc-dirty"


def test_an_empty_row_prints(capsys):
    harness.print_table([{"case": "a", "peak_gb": None, "ms": 1.23456}])
    assert "1.235" in capsys.readouterr().out


def test_ours_stand_beside_the_strongest_official_figure(tmp_path):
    case = next(g.case for g in against.goals() if g.case.name == "pixnerd-euler50-1")
    before = measured(case, ms=120.0, queued_ms=117.6, which=against.BEFORE)
    now = measured(case, ms=100.0, queued_ms=98.0, which=against.NOW)
    broken = {"case": case.name, "failed": "out of memory"}
    path = written(tmp_path / "against.jsonl", before, now, broken)
    text = against.render(harness.read(path), {})
    cells = next(line for line in text.splitlines() if case.name in line).split("|")
    figures = [cell.strip() for cell in cells[2:]]
    assert figures[:4] == ["0.484 s", "0.239 s", "0.120 s", "0.118 s"]
    assert figures[4:8] == ["**0.100 s**", "0.098 s", "1.20", "2.39"]
    assert figures[8:10] == ["15 %", "37 %"]  # of 700 TFLOP/s, both


def test_every_goal_has_a_baseline_and_baselines_have_goals():
    official = against.baselines()
    assert set(official) == {goal.case.name for goal in against.goals()}
    for rows in official.values():
        assert all(row["ms"] > 0 and row["what"] and row["device"] for row in rows)
