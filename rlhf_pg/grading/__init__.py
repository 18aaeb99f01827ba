"""Are two math answers the same? Entry: `equality.grade`, `equality.equal`. Imports no torch; evaluates no text."""
