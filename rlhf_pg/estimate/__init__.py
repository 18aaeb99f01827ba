"""Memory and time before step 1. Entry: `run_estimate.estimate_run`, `layout_estimate.estimate_layouts`."""
