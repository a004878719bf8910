"""What is around the training loop: settings, the run folder, the report, the console."""
