"""GRPO and its variants in an afternoon: six notebooks, twelve exercises with checks."""
