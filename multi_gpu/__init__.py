"""The same algorithm on several GPUs, as a trainer of TRL."""
