"""Problems to learn from, one small file per task, each exporting a `Task` record named `task`."""
