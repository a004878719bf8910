"""Speed and memory: a step of this project and of TRL, growth with lengths, sizes of models."""
