"""The experiments behind the claims: the grid, controls, verdicts."""
