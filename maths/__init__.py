"""Problems with real mathematics: rows of a data set, problems, answers and their verifier, benchmarks."""
