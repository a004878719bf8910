"""The experiments behind the claims: the grid, controls, ablations, verdicts."""
