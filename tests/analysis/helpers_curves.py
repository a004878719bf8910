"""Run folders made here, for the tests of analysis.curves and analysis.table."""

import csv
import json

from analysis import curves

COLUMNS = ["step", "reward", "response_length", "entropy", "grad_norm", "kept_fraction"]
COLUMNS += ["responses", "rollout_seconds", "train_seconds"]


def make_run(folder, method="dagrpo", seed=0, steps=6, flags=None, accuracy=0.5, **columns):
    """A run folder. A column is a function of the step; what is not given is 1 / step, and None an empty cell."""
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "seed": seed,
        "steps": steps,
        "lr": 1e-4,
        "delta": 3.0,
        "init_from": None,
        "model": None,
    }
    (folder / "config.json").write_text(json.dumps(config | {"out": str(folder)} | (flags or {})))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for step in range(1, steps + 1):
            values = {"step": step} | {name: f(step) for name, f in columns.items()}
            writer.writerow([values.get(name, 1 / step) for name in COLUMNS])
    write_eval(folder / "eval.json", accuracy)
    return folder


def write_eval(path, accuracy, problems=100):
    def level(name, share):
        return {"level": name, "problems": problems, "greedy": {"accuracy": share}, "sampled": None}

    test = [level(str(n), accuracy + n / 100) for n in range(1, 6)]
    ood = [level("ood-long", accuracy / 2), level("ood-large", 0.0)]
    found = {"test": {"levels": test}, "ood": {"levels": ood}, "validation": {"levels": [level("1", 0.9)]}}
    path.write_text(json.dumps({"settings": {"max_new_tokens": 64}, "benchmarks": found}))


def nothing(step):
    return None


SFT = dict.fromkeys(("reward", "response_length", "entropy", "kept_fraction", "responses"), nothing)


def draw(tmp_path, *runs, smooth=1):
    """Runs the command; the points that it wrote, by (panel, method)."""
    out = tmp_path / "figures"
    curves.main([*map(str, runs), "--out", str(out), "--smooth", str(smooth)])
    lines = {}
    for point in curves.read_csv(out / "curves.csv").itertuples():
        lines.setdefault((point.panel, point.method), []).append(point)
    return lines
