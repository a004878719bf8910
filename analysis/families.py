"""The methods of dagrpo.METHODS by family, with one line on what each changes: for pages and tables."""

from __future__ import annotations

from dagrpo import Recipe

FAMILIES = {
    "advantages: what is a response compared with?": {
        "reinforce": "with nothing: A = R",
        "rloo": "with the mean of the others; no ratio, no clip",
        "grpo": "with the group's mean, divided by its standard deviation; token mean of each response",
        "dr_grpo": "grpo without the standard deviation and without the length in the divisor",
        "maxrl": "with the mean, divided by the mean: a rare right response counts more",
        "lite_ppo": "grpo with the standard deviation of the whole batch's rewards; token mean of the batch",
        "reinforce_pp": "lite_ppo, but the standard deviation is that of R minus its group's mean",
    },
    "ratios and clips: how far may the policy move away from the one that sampled?": {
        "rgra": "grpo without ratio and clip",
        "dapo": "grpo with a higher upper clip and a token mean; groups of equal rewards are sampled again",
        "two_sided": "grpo, and where A < 0 ratios above 4 are clipped too",
        "cispo": "the clip bounds the weight of a token, and no token loses its gradient",
        "sapo": "a soft gate instead of the clip",
        "dppo_tv": "a trust region for a token's probability, instead of a clip of its ratio: total variation",
        "dppo_kl": "the same by the KL divergence over two outcomes: this token, or any other",
        "gspo": "one ratio for a response, the geometric mean of its tokens'; a narrow clip",
        "luspo": "gspo without its lean towards short responses",
        "gmpo": "a geometric mean too, but each token's ratio is clipped first; a wide clip",
    },
    "masks: which tokens and responses count?": {
        "top_entropy": "dapo on the fifth of the tokens where the policy was least certain",
        "gtpo": "shared tokens count double in right responses, not at all in wrong ones; entropy is penalised",
        "deepseek_v32": "wrong responses that have become much less likely are left out",
        "dagrpo_on": "dr_grpo, and responses that are not clearly better, or worse, than the other side are left out",
        "dagrpo_soft": "dagrpo_on, but such responses count less instead of not at all",
    },
    "demonstrations: what can be learned where nobody is right?": {
        "sft": "the demonstration alone, and nothing is sampled",
        "luffy": "the demonstration is one of the group; tokens of probability near 0.1 are pushed hardest",
        "chord": "a tenth of the loss is SFT on tokens that are neither sure nor hopeless",
        "hpt": "SFT where no response is right, dr_grpo elsewhere",
        "dagrpo": "dagrpo_on, and the demonstration is one of the group",
    },
}


def cite(recipe: Recipe) -> str:
    """Where a recipe comes from."""
    return f"arXiv {recipe.paper}" if recipe.paper[:1].isdigit() else recipe.paper
