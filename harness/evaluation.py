"""Everything around eval.py: its flags, the checks before a model is loaded, and where the results go."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import ConfigParser, check_memory, check_numbers, flag
from harness.console import fail, loading_torch, one_line
from harness.files import aside
from maths import benchmarks, data
from tasks import WORLDS, Problem

if TYPE_CHECKING:
    from policy import Policy

OF_CHOICES = benchmarks.CHOICE_INSTRUCTION.removeprefix(data.INSTRUCTION).strip()


@dataclass(frozen=True)
class Settings:
    """the flags of eval.py"""

    model: str = flag("warm_start", "run folder, model folder or hub id [warm_start, where every method begins]", "M")
    world: str | None = flag(None, f"the built-in task's world: {', '.join(WORLDS)} [the run's, or plain]", "W")
    benchmarks: str = flag("test,ood", f"one or more of {', '.join([*benchmarks.BUILT_IN, *benchmarks.PAPER])}", "A,B")
    benchmark_dir: str | None = flag(None, "read benchmarks from this folder, not from the hub", "DIR")
    levels: str | None = flag(None, "levels of the built-in task [all]; those of ood are always asked", "L,..")
    per_level: int | None = flag(None, "built-in: problems per level [100; validation: 50]", "N")
    limit: int | None = flag(None, "at most N problems of each benchmark, spread evenly over it", "N")
    k: int | None = flag(None, "sampled responses per problem; 0: greedy only [4, the paper's 32 or 1]", "N")
    temperature: float | None = flag(None, "of sampling [1, the paper's 0.6]", "T")
    max_new_tokens: int | None = flag(None, "longest response [64, the paper's 8192]", "T")
    batch: int | None = flag(None, "responses generated at a time [256; not built in: 32]", "N")
    seed: int = flag(0, "of sampling; the problems stay the same", "S")
    instruction: str | None = flag(
        None,
        f"appended to each question, except in the built-in task; '' appends nothing [{data.INSTRUCTION} "
        f"In multiple choice also: {OF_CHOICES}]",
        "TEXT",
    )
    out: str | None = flag(None, "where results go [RUN/eval.json; RUN/benchmarks.json if not built in]", "FILE.json")
    overwrite: bool = flag(False, "replace the responses of an earlier evaluation")
    plain: bool = flag(False, "use rollout.py instead of fast/: slower, but easy to read")
    trust_remote_code: bool = flag(False, "run Python files that come with a model; without the flag they never run")

    def protocol(self, name: str) -> dict[str, Any]:
        """How a benchmark is asked: by the flags, else by our defaults for the built-in ones, else as in the paper.

        >>> Settings(temperature=0.9).protocol("aime24")
        {'k': 32, 'temperature': 0.9, 'max_new_tokens': 8192, 'batch': 32}
        """
        built_in = name in benchmarks.BUILT_IN
        usual = {
            "k": 4 if built_in else benchmarks.get(name).k,
            "temperature": 1.0 if built_in else benchmarks.TEMPERATURE,
            "max_new_tokens": 64 if built_in else benchmarks.MAX_NEW_TOKENS,
            "batch": 256 if built_in else 32,
        }
        return {name: value if getattr(self, name) is None else getattr(self, name) for name, value in usual.items()}


def read_flags(argv: list[str], about: str | None) -> Settings:
    """The flags, not checked yet. This file imports no model code, so that --help is quick."""
    parser = ConfigParser((Settings,), prog="eval.py", description=about, usage="python eval.py --model M [flags]")
    settings = Settings(**vars(parser.parse_args(argv)))
    loading_torch()
    return settings


def parse(argv: list[str], about: str | None) -> tuple[Settings, dict[str, tuple[list[Problem], int]], Path | None]:
    """The checked settings, the result of load_problems for each benchmark, and the file for the results.

    Ends the program with one line if something cannot work, before a model is loaded.
    """
    settings = read_flags(argv, about)
    settings = replace(settings, world=settings.world or world_of(settings.model))
    if settings.world not in WORLDS:
        fail(f"--world: there is no {settings.world}; choose from {', '.join(WORLDS)}")
    find_model(settings.model)
    return settings, check(settings), place_output(settings)


def world_of(model: str) -> str:
    """The world that a run folder's policy was trained in; "plain" for other models."""
    try:
        return json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("world", "plain")
    except (OSError, ValueError, AttributeError):
        return "plain"


def check(settings: Settings) -> dict[str, tuple[list[Problem], int]]:
    """Checks the settings, then loads the problems of every benchmark."""
    check_numbers(settings)
    if settings.benchmark_dir and not Path(settings.benchmark_dir).is_dir():
        fail(f"--benchmark-dir {settings.benchmark_dir}: there is no such folder")
    there = WORLDS[settings.world].levels
    if settings.levels and (unknown := ", ".join(sorted(set(settings.levels.split(",")) - set(there)))):
        fail(f"--levels: there is no level {unknown} in the world {settings.world}; choose from {', '.join(there)}")
    asked = dict.fromkeys(settings.benchmarks.split(","))
    known = [*benchmarks.BUILT_IN, *benchmarks.PAPER]
    for name in asked:
        if name not in known and (not settings.benchmark_dir or not name or Path(name).name != name):
            fail(f"--benchmarks: there is no {name!r}; choose from {', '.join(known)}")
        how = settings.protocol(name)
        check_memory(max(how["batch"], how["k"]), how["max_new_tokens"], "--batch, --k, --max-new-tokens")
    return {name: load_problems(settings, name) for name in asked}


def load_problems(settings: Settings, name: str) -> tuple[list[Problem], int]:
    """A benchmark's problems as the model is asked, and how many of its rows cannot be used; a line says why."""
    if name in benchmarks.BUILT_IN:
        try:
            levels = settings.levels.split(",") if settings.levels else None
            return benchmarks.built_in(name, settings.per_level, settings.limit, settings.world, levels), 0
        except ValueError as error:
            fail(f"--per-level {settings.per_level}: {error}; ask for fewer")
    directory = Path(settings.benchmark_dir) if settings.benchmark_dir else None
    problems, report = benchmarks.load(name, directory, settings.limit)
    if report.skipped:
        print(f"{name}: {report}", file=sys.stderr)
    instruction = benchmarks.get(name).instruction if settings.instruction is None else settings.instruction
    return data.instruct(problems, instruction), report.skipped.total()


def find_model(name: str) -> None:
    """Ends the program with one line if `name` can only be a missing folder; the hub would answer with a traceback."""
    if name == "warm_start":
        return
    from harness.warm_start import find_start  # imports transformers' models, which takes seconds

    with one_line(f"--model {name} cannot be read", OSError):
        where = Path(find_start(name))
    if not where.exists() and where.parent.is_dir():
        fail(f"--model {name}: there is no such folder (and a hub id has the form owner/name)")


def place_output(settings: Settings) -> Path | None:
    """The file for the results; None: they are only printed. That it can be written is tested now, before the work."""
    run = Path(settings.model)
    is_run = (run / "config.json").exists() and (run / "checkpoint").is_dir()
    only_built_in = benchmarks.BUILT_IN.keys() >= set(settings.benchmarks.split(","))
    usual = run / ("eval.json" if only_built_in else "benchmarks.json")
    out = Path(settings.out) if settings.out else usual if is_run else None
    if out:
        try:
            if out.is_dir():
                fail(f"--out {out} is a folder: name a file in it")
            out.parent.mkdir(parents=True, exist_ok=True)
            Path(f"{out}.partial").touch()
            Path(f"{out}.partial").unlink()
        except OSError as error:
            fail(f"--out {out}: cannot be written ({error.strerror}); choose another file")
    return out


def write(settings: Settings, policy: Policy, out: Path, parts: dict[str, Any]) -> None:
    """Writes the results as JSON. The file is renamed when complete: a killed evaluation leaves the old one there."""
    import torch  # takes seconds, for which --help must not wait

    first = next((name for name in parts if name in benchmarks.BUILT_IN), next(iter(parts)))
    record = {"settings": asdict(settings) | settings.protocol(first), "benchmarks": parts}
    record |= {"seconds": sum(part["seconds"] for part in parts.values())}
    record |= {"model": policy.model.name_or_path, "device": str(policy.device), "torch": torch.__version__}
    try:
        with aside(out) as file:
            file.write(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); make room, or choose another file")
    print(f"written: {out}")
