"""The toy of the ladder recipes: every sampled token that is a 7 is worth its share of the row, at once."""


def sevens(token_texts: list[str], max_new_tokens: int) -> list[float]:
    """One reward per sampled token; a row of nothing but sevens has 1.0, an early end forgoes the rest."""
    return [float(text == "7") / max_new_tokens for text in token_texts]
