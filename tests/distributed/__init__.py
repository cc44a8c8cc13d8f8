"""Everything that loads Ray or DeepSpeed, on the real things."""
