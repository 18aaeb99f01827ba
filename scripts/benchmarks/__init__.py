"""What scripts/bench.py measures, one file a subject. The command itself imports no torch: contenders are processes."""
