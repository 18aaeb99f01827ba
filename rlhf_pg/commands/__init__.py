"""One file per subcommand of `rlhf-pg`: parse, build, call, say. Heavy imports come after parsing."""
