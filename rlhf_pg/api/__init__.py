"""The toolkit from Python: docs/python.md."""
