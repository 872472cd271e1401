"""What `scripts/bench.py` measures; see there."""
