"""Real mathematics: problems from data sets, the verifier of their answers, benchmarks, puzzles."""
