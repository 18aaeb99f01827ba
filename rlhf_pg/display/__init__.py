"""Numbers and text for people: the live view, figures, visible text, the style of pictures."""
