"""A run's folder becomes a page. Entry: `write_report.write`."""
