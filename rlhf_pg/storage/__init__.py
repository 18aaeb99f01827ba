"""Bytes that survive a kill. Entry: `run_dir.RunDir`, `checkpoint`, `atomic_io`."""
