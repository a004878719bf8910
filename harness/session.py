"""Everything around the training loop: the run folder, signals, checkpoints, progress, one-line errors.

    with Session(config) as session:            the folder is locked: other processes are kept out
        for step in session.steps(run, task):   from the checkpoint's step on, until --steps or a signal
            ...
            session.record(groups, figures)     metrics.csv, rollouts.jsonl, the screen, a checkpoint when it is due

An error that a user can do something about ends the program with one line: what is wrong, and how to go on.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from harness import checkpoint, runfolder
from harness.boards import board
from harness.config import Config
from harness.console import fail, first_line, progress
from harness.prepare import Task
from harness.report import measure, percent, records, show
from judges.prompt import JudgeDown
from rollout import Groups

MOST_NOT_FINITE = 5  # updates in a row


class Session:
    """One run of train.py in its folder; `checkpoint` is the one to go on from, if there is one."""

    def __init__(self, config: Config) -> None:
        self.config, self.out = config, Path(config.out)
        self.stop: list[int] = []  # signals that ask the run to stop

    def __enter__(self) -> Session:
        config = self.config
        with ExitStack() as around:  # left behind only if the folder is refused
            self.checkpoint = around.enter_context(runfolder.claim(self.out, config.resume, config.overwrite))
            self.refuse_another_run(asdict(config))
            self.around = around.pop_all()
        return self

    def refuse_another_run(self, about: dict[str, Any]) -> None:
        """Ends the program if the settings are not those of the run folder or of the checkpoint to go on from."""
        for folder in (self.out, self.checkpoint) if self.checkpoint else ():
            if differ := runfolder.changed(folder, about):
                fail(
                    f"--resume: these settings differ from those in {folder}: {'; '.join(differ)}. Use the same "
                    f"flags and data, or start a new run from this one's weights: --init-from {self.out}"
                )

    def steps(self, run: Any, task: Task) -> Iterator[int]:
        """Begins the folder, then yields the number (from 0) of each step that is left of `run`, a train.Run."""
        config = self.config
        self.run, self.task = run, task
        self.begin_folder()
        self.report = self.around.enter_context(board(config.report, self.out, asdict(config), run.step))
        for number in (signal.SIGINT, signal.SIGTERM):
            self.around.callback(signal.signal, number, signal.signal(number, self.on_signal))
        steps = range(run.step, config.steps)
        self.bar = progress(steps, desc=config.method, unit="step", initial=run.step, total=config.steps)
        self.around.callback(self.bar.close)
        for step in self.bar:
            self.before, self.began = checkpoint.random_state(), time.perf_counter()
            yield step

    def on_signal(self, number: int, _frame: Any) -> None:
        """Lets the step finish and a checkpoint be written. A second signal ends the program at once."""
        if self.stop:
            sys.exit(128 + number)
        self.stop.append(number)

    def begin_folder(self) -> None:
        """Cuts a resumed run back to its checkpoint; for a new run, writes config.json, which holds no API key."""
        config, run, task = self.config, self.run, self.task
        about = asdict(config) | {"recipe": asdict(run.recipe), "experiment": run.experiment}
        about |= {"anchors": task.fates, "problems": len(task.problems), "content": task.identity}
        self.refuse_another_run(about)
        if self.checkpoint:
            runfolder.cut_back(self.out, run.step)
            print(f"going on after step {run.step} of {config.steps}", file=sys.stderr)
            return
        if config.resume:
            print(f"{self.out} holds no checkpoint: starting from the beginning", file=sys.stderr)
        runfolder.clear(self.out)
        runfolder.write_config(self.out, about)

    def record(self, groups: Groups, figures: dict[str, Any]) -> None:
        """After a step: files, screen, a checkpoint if it is due. Ends the program if a signal has asked for that."""
        run, config = self.run, self.config
        run.step += 1
        seconds = {"rollout_seconds": time.perf_counter() - self.began - figures["train_seconds"]}
        row = {"step": run.step, **measure(groups, self.task.levels), **seconds, **figures}
        if self.task.judged:
            cost = self.task.judged.take()
            row |= {"judge_saved": int(groups.scores.isnan().sum()) - cost["judge_failures"], **cost}
        runfolder.append_metrics(self.out, row)
        self.report(row)
        if run.step % config.log_rollouts_every == 0:
            change = self.change(groups) if config.record_changes else None
            runfolder.append_rollouts(self.out, records(groups, run.step, change))
        if row["skipped_updates"]:
            self.look_into(groups)
        if config.show_every and run.step % config.show_every == 0:
            self.bar.write(show(groups, run.step, config.delta))
        shown = {"loss": f"{row['loss']:.3f}"} if row["reward"] is None else {"reward": f"{row['reward']:.2f}"}
        self.bar.set_postfix(**shown, kept=percent(row["kept_fraction"]), refresh=False)
        if self.stop or run.step == config.steps or run.step % config.save_every == 0:
            self.save()
        if self.stop:
            self.bar.close()
            print(f"stopped after step {run.step}; to continue, run {self.same_command}", file=sys.stderr)
            sys.exit(128 + self.stop[0])

    @torch.no_grad()
    def change(self, groups: Groups) -> torch.Tensor:
        """How the step changed the log-prob of each token, (N, T), in nats. NaN on anchors that it did not use."""
        run, rollouts = self.run, groups.rollouts
        everything, after = torch.arange(len(rollouts.texts)), torch.zeros_like(rollouts.logp)
        for index in run.path.micro_batches(rollouts, everything, self.config.micro_batch_tokens):
            logp, _ = run.path.token_logprobs(run.policy, rollouts, index, self.config.temperature)
            after[index, : logp.shape[1]] = logp
        return after - rollouts.logp

    def look_into(self, groups: Groups) -> None:
        """Saves the groups if a gradient was not finite. MOST_NOT_FINITE such updates in a row end the run."""
        self.bar.write(f"step {self.run.step}: an update was skipped, its gradient was not finite")
        runfolder.append_rollouts(self.out, records(groups, self.run.step), "nonfinite.jsonl")
        self.bar.write("its groups are in nonfinite.jsonl")
        if self.run.not_finite >= MOST_NOT_FINITE:
            raise FloatingPointError(
                f"{self.run.not_finite} gradients in a row were not finite: start again with a lower --lr"
            )

    def save(self) -> None:
        run = self.run
        trainer = {"step": run.step, "start_entropy": run.start_entropy}
        checkpoint.save_checkpoint(self.out, run.policy, run.optimizer, trainer, self.config.keep)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Turns errors that a user can do something about into one line; others are raised as they are."""
        told = ""
        try:
            if isinstance(error, JudgeDown) and hasattr(self, "before"):
                checkpoint.set_random_state(self.before)  # on resume, the step is taken again in the same way
                self.save()
            if isinstance(error, JudgeDown | FloatingPointError):
                told = f"{error}. {self.how_to_go_on(again=isinstance(error, JudgeDown))}"
            elif isinstance(error, OSError) and hasattr(self, "run"):
                told = f"--out {self.out}: {first_line(error)}. Make room, or allow writing. {self.how_to_go_on()}"
        finally:
            self.around.close()
        if told:
            fail(told)

    @property
    def same_command(self) -> str:
        if self.config.resume:
            return "the same command again"
        return f"the same command with --resume{' instead of --overwrite' if self.config.overwrite else ''}"

    def how_to_go_on(self, again: bool = True) -> str:
        """How to go on, as a sentence. `again`: the step may succeed next time. The folder must still be locked."""
        folder = checkpoint.find_checkpoint(self.out)
        if folder is None:
            return "There is no checkpoint yet"
        good = f"The checkpoint is of step {(folder / 'step').read_text()}"
        if again:
            return f"{good}; to continue, run {self.same_command}"
        return f"{good}, and good: a new run with a lower --lr can start from it, with --init-from {self.out}"
