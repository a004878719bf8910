"""Everything around the training loop: settings, the run folder, checkpoints, reports, the console."""
