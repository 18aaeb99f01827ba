"""From a YAML file to a checked recipe: reading (files), messages (what is wrong), checks (keys against each other)."""
