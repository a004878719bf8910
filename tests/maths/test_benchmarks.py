"""benchmarks.py: the built-in ones, the hub's layouts, multiple choice, local files, and the paper's table."""

import datasets
import pytest
from helpers import SHARED

import tasks
from maths import benchmarks, data

BENCHMARKS = SHARED / "data" / "benchmarks"
ARC = {
    "id": "Mercury_1",
    "question": "What melts? ",
    "choices": {"text": ["rock", "ice", "air"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
GPQA = {
    "Question": "Which one?\n",
    "Correct Answer": "this\n",
    "Incorrect Answer 1": "that",
    "Incorrect Answer 2": "those",
    "Incorrect Answer 3": "these",
}
MMLU_PRO = {"question": "Ten?", "options": [f"option {i}" for i in range(10)], "answer": "J", "answer_index": 9}
# name -> what load_dataset must be asked for, a row as the hub has it, the question and answer that become of it
HUB = {
    "aime24": (("HuggingFaceH4/aime_2024", None, "train"), {"problem": "P", "answer": "025"}, "P", "025"),
    "aime25": (("math-ai/aime25", None, "test"), {"problem": "P", "answer": "70", "id": "0"}, "P", "70"),
    "amc": (("AI-MO/aimo-validation-amc", None, "train"), {"problem": "P", "answer": 142.0}, "P", "142"),
    "math500": (
        ("HuggingFaceH4/MATH-500", None, "test"),
        {"problem": "P", "solution": "long", "answer": "p - q", "subject": "Algebra", "level": 2},
        "P",
        "p - q",
    ),
    "minerva": (("math-ai/minervamath", None, "test"), {"question": "P", "answer": "4.5e33"}, "P", "4.5e33"),
    "olympiadbench": (
        ("math-ai/olympiadbench", None, "test"),
        {"question": "P", "final_answer": ["1", "2"], "solution": ["long"]},
        "P",
        "1, 2",
    ),
    "arc_c": (("allenai/ai2_arc", "ARC-Challenge", "test"), ARC, "What melts?\n\nA) rock\nB) ice\nC) air", "B"),
    "gpqa_diamond": (("Idavidrein/gpqa", "gpqa_diamond", "train"), GPQA, None, None),
    "mmlu_pro": (("TIGER-Lab/MMLU-Pro", None, "test"), MMLU_PRO, None, "J"),
}


@pytest.fixture
def hub(monkeypatch):
    """A hub that gives the rows that are put into it, and notes what it was asked for."""
    asked, rows = [], []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked, rows


# ---------------------------------------------------------------------------------------- built in


def test_benchmarks_are_of_their_split_and_always_the_same():
    for name, split in (("test", "test"), ("ood", "test"), ("validation", "validation")):
        problems = benchmarks.built_in(name)
        assert problems == benchmarks.built_in(name)
        assert {tasks.split_of(p.question) for p in problems} == {split}
    assert {p.level for p in benchmarks.built_in("ood")} == set(tasks.OOD_LEVELS)
    assert {p.level for p in benchmarks.built_in("test", levels=["2", "5"])} == {"2", "5"}
    assert len(benchmarks.built_in("ood", levels=["2"])) == 200, "those out of distribution are asked anyway"
    assert len(benchmarks.built_in("test")) == 500 and len(benchmarks.built_in("ood", per_level=7)) == 14


def test_limit_is_of_the_whole_benchmark_and_leaves_no_level_out():
    some, whole = benchmarks.built_in("test", limit=12), benchmarks.built_in("test")
    assert [sum(p.level == level for p in some) for level in tasks.LEVELS] == [3, 3, 2, 2, 2]
    assert some == [p for p in whole if p in some]
    assert benchmarks.built_in("test", limit=10**6) == whole


# ---------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize("name", HUB)
def test_each_of_the_nine_is_asked_for_and_read(hub, name):
    asked, rows = hub
    source, row, question, answer = HUB[name]
    rows.append(row)
    (problem,), report = benchmarks.load(name)
    assert asked == [source] and not report.skipped
    assert question in (None, problem.question) and answer in (None, problem.answer)
    assert (problem.demo, problem.level) == ("", "all")


def test_the_nine_are_the_papers():
    assert set(HUB) == set(benchmarks.PAPER)
    assert {name for name, b in benchmarks.PAPER.items() if b.k == 32} == {"aime24", "aime25", "amc"}
    assert {b.k for b in benchmarks.PAPER.values()} == {1, 32}
    choice = {name for name, b in benchmarks.PAPER.items() if b.options}
    assert choice == {name for name, b in benchmarks.PAPER.items() if b.ood} == {"arc_c", "gpqa_diamond", "mmlu_pro"}
    assert "letter" in benchmarks.PAPER["arc_c"].instruction and "letter" not in benchmarks.PAPER["amc"].instruction


def test_ten_options_have_ten_letters(hub):
    hub[1].append(MMLU_PRO)
    question = benchmarks.load("mmlu_pro")[0][0].question
    assert question.splitlines() == ["Ten?", "", *(f"{'ABCDEFGHIJ'[i]}) option {i}" for i in range(10))]


def test_numbered_options_become_letters(hub):
    hub[1].append({**ARC, "choices": {"text": ["rock", "ice"], "label": ["1", "2"]}, "answerKey": "2"})
    assert benchmarks.load("arc_c")[0][0].answer == "B"


def test_gpqa_is_shuffled_alike_on_every_machine_and_the_letter_follows(hub):
    hub[1].extend({**GPQA, "Question": f"Which one, {i}?"} for i in range(40))
    problems, _ = benchmarks.load("gpqa_diamond")
    for problem in problems:
        options = dict(line.split(") ") for line in problem.question.splitlines()[2:])
        assert options[problem.answer] == "this" and sorted(options.values()) == ["that", "these", "this", "those"]
    letters = "".join(problem.answer for problem in problems)
    assert set(letters) == set("ABCD")
    assert letters == "DBABABABCDCDABACBDBCDCBBADBDAABCBCDDDBDB"


@pytest.mark.parametrize(
    ("name", "good", "broken"),
    [
        ("arc_c", ARC, {"answerKey": "E"}),
        ("arc_c", ARC, {"answerKey": None}),
        ("arc_c", ARC, {"choices": None}),
        ("gpqa_diamond", GPQA, {"Incorrect Answer 2": None}),
        ("mmlu_pro", MMLU_PRO, {"answer": "?"}),
        ("mmlu_pro", MMLU_PRO, {"question": None}),
    ],
)
def test_a_broken_multiple_choice_row_is_skipped(hub, name, good, broken):
    hub[1].extend([good, {**good, **broken}, good])
    problems, report = benchmarks.load(name)
    assert len(problems) == 2 and report.skipped.total() == 1 and report.rows == 3


# ---------------------------------------------------------------------------------------- local files


def write(path, n):
    datasets.Dataset.from_list([{"problem": f"{i}+0?", "answer": str(i)} for i in range(n)]).to_parquet(path)


def test_local_files_are_taken_by_name(tmp_path):
    write(tmp_path / "aime24.parquet", 3)
    (tmp_path / "amc.jsonl").write_text('{"problem": "2+2?", "answer": "4.0", "level": "x"}')
    (tmp_path / "mine.json").write_text('[{"question": "2+3?", "answer": "2+3=<<2+3=5>>5\\n#### 5"}]')
    answers = {name: [p.answer for p in benchmarks.load(name, tmp_path)[0]] for name in ("aime24", "amc", "mine")}
    assert answers == {"aime24": ["0", "1", "2"], "amc": ["4.0"], "mine": ["5"]}
    assert benchmarks.load("amc", tmp_path)[0][0].level == "all"
    assert benchmarks.get("mine").k == 1 and benchmarks.get("amc").k == 32


def test_limit_is_spread_over_the_file(tmp_path):
    write(tmp_path / "math500.parquet", 10)
    for limit, answers in ((1, "0"), (3, "036"), (9, "012345678"), (10, "0123456789"), (99, "0123456789")):
        assert "".join(p.answer for p in benchmarks.load("math500", tmp_path, limit)[0]) == answers


def test_a_missing_file_gets_one_line(tmp_path, capsys):
    (tmp_path / "amc.csv").write_text("")
    with pytest.raises(SystemExit) as stop:
        benchmarks.load("amc", tmp_path)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "has no amc in it" in err and ".jsonl" in err


@pytest.mark.extra
def test_all_nine_files_load():
    if not BENCHMARKS.is_dir():
        pytest.skip("there is no ../shared/data/benchmarks")
    found = {}
    for name in benchmarks.PAPER:
        problems, report = benchmarks.load(name, BENCHMARKS)
        found[name] = len(problems)
        print(f"{name}: {report}")
    rows = {"aime24": 30, "aime25": 30, "amc": 83, "math500": 500, "arc_c": 1172, "gpqa_diamond": 198, "mmlu_pro": 70}
    assert found == {**rows, "minerva": found["minerva"], "olympiadbench": found["olympiadbench"]}
    assert 268 <= found["minerva"] <= 272 and 672 <= found["olympiadbench"] <= 675  # some golds are no mathematics


# ---------------------------------------------------------------------------------------- Table 1


PAPER_ROW = dict(zip(benchmarks.PAPER, [29.5, 20.9, 63.0, 86.0, 37.5, 55.8, 83.1, 40.9, 53.0], strict=True))


def test_the_papers_own_row_comes_out_as_printed():
    head, row = benchmarks.table("DaGRPO", {name: value / 100 for name, value in PAPER_ROW.items()}).splitlines()
    assert " ".join(row.split()) == "DaGRPO 29.5/20.9 63.0 86.0 37.5 55.8 48.8 | 83.1 40.9 53.0 59.0"
    titles = "model AIME 24/25 AMC MATH-500 Minerva Olympiad avg | ARC-c GPQA-D MMLU-Pro avg"
    assert " ".join(head.split()) == titles
    assert len(head) == len(row) and head.index("|") == row.index("|")


@pytest.mark.parametrize(
    ("names", "head", "row"),
    [
        (["aime25"], "model AIME 25 avg of 1", "m 20.9 20.9"),
        (["amc", "aime24"], "model AIME 24 AMC avg of 2", "m 29.5 63.0 46.2"),
        (["arc_c", "gpqa_diamond", "mmlu_pro"], "model ARC-c GPQA-D MMLU-Pro avg", "m 83.1 40.9 53.0 59.0"),
        (["math500", "arc_c"], "model MATH-500 avg of 1 | ARC-c avg of 1", "m 86.0 86.0 | 83.1 83.1"),
    ],
)
def test_only_what_was_run_is_in_the_table(names, head, row):
    lines = benchmarks.table("m", {name: PAPER_ROW[name] / 100 for name in names}).splitlines()
    assert [" ".join(line.split()) for line in lines] == [head, row]


def test_the_list_is_printed(capsys):
    benchmarks.main([])
    out = capsys.readouterr().out
    assert all(name in out and b.hub in out for name, b in benchmarks.PAPER.items())
    assert data.INSTRUCTION not in out
