"""Is this run set up right? Entry: `checks.preflight` in a run, `checks.run` for `rlhf-pg check`."""
