"""Does a judge agree with the rule? The scores of a run with --scorer judge or local, next to the rule's (Eq. 7).

The rule scores the same responses that the judge did, and the mask of Eq. 8-9 is made from either's scores. Printed:

    asked, scored       responses with A != 0, about which the judge was asked, and those of them that got a score
    rank correlation    of the judge's scores with the rule's (Spearman)
    right above wrong   pairs of a right and a wrong response of one group: the share in which the right one has the
                        higher score; a tie counts one half. 0.5: the judge does not see which is right
    gap                 the median difference of the two scores of such a pair; a pair masks its responses where the gap
                        is below delta
    kept                the share of scored responses that the mask keeps
    same mask           the share on which both masks agree

Demonstrations are in their groups when masks are made, but are not counted: a judge is shown the same text.

    python -m analysis.experiments.agreement RUN [RUN ...]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import scoring
from analysis.run_folders import read_config, read_rollouts
from analysis.stats import markdown, spearman
from dagrpo import rectification_mask
from harness.console import Parser, fail, one_line
from tasks import Problem


def both_scores(group: dict) -> np.ndarray:
    """The judge's S and the rule's, (2, G), of one line of rollouts.jsonl. NaN where the judge gave none."""
    problem = Problem(group["question"], group["answer"], group["demonstration"], group["level"])
    judge = [np.nan if score is None else score for score in group["S"]]
    return np.array([judge, scoring.rule_scores([(problem, response) for response in group["responses"]])])


def compare(groups: list[dict], delta: float) -> list[str]:
    """The cells of the table that main prints, for the groups of one run."""
    asked, scores, kept, gaps = 0, [], [], []
    for group in groups:
        both, A, R = both_scores(group), torch.tensor([group["A"]]), np.array(group["R"])
        wanted = (A != 0)[0].numpy() & ~np.array(group["is_anchor"])  # (G,)
        asked, here = asked + wanted.sum(), wanted & ~np.isnan(both[0])
        masks = [rectification_mask(A, torch.from_numpy(S)[None], delta)[0].numpy() for S in both]
        scores.append(both[:, here])
        kept.append(np.array(masks)[:, here])
        right, wrong = here & (R == 1), here & (R == 0)
        gaps.append((both[:, right, None] - both[:, None, wrong]).reshape(2, -1))
    scores, kept, gaps = (np.concatenate(parts, axis=1) for parts in (scores, kept, gaps))
    if not gaps.size:
        return [str(asked), str(scores.shape[1]), *[""] * 7]
    above = ((gaps > 0) + 0.5 * (gaps == 0)).mean(axis=1)
    shares = [above, np.median(gaps, axis=1), kept.mean(axis=1)]
    cells = [f"{value:.2f}" for pair in shares for value in pair]
    agreed = f"{(kept[0] == kept[1]).mean():.2f}"
    return [str(asked), str(scores.shape[1]), f"{spearman(*scores):.2f}", *cells, agreed]


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.agreement", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train.py")
    args = parser.parse_args(argv)
    lines = []
    for run in args.runs:
        config = read_config(run)
        if config.get("scorer", "rule") == "rule":
            fail(f"{run} was scored by the rule: give a run with --scorer judge or --scorer local")
        with one_line(f"{run}/rollouts.jsonl cannot be read", OSError):
            groups = [group for _, _, group in read_rollouts(run)]
        if not groups:
            fail(f"{run}/rollouts.jsonl has no group yet")
        with one_line(f"{run}/rollouts.jsonl is damaged", TypeError, KeyError, ValueError):
            lines.append([str(run), *compare(groups, config["delta"])])
    two = [f"{what}: {who}" for what in ("right above wrong", "gap", "kept") for who in ("judge", "rule")]
    print(markdown(["run", "asked", "scored", "rank correlation", *two, "same mask"], lines))


if __name__ == "__main__":
    main()
