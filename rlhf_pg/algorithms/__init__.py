"""One small file per algorithm, each exporting an `Algorithm` record named `algorithm`."""
