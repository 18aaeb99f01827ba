"""The unit of an answer: `5\\text{ cm}^2`, `\\$5`, `5\\%`, `5 million dollars`."""

from __future__ import annotations

import re

MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
UNITS = {
    "%": "% percent percents percentage pct", "°": "° deg degree degrees", "$": "$ dollar dollars usd",
    "cent": "¢ cent cents", "€": "€ euro euros eur", "£": "£ pound sterling",
    "mm": "mm millimeter millimeters millimetre millimetres", "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres", "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "s": "s sec secs second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "yr yrs year years",
    "g": "g gram grams", "kg": "kg kilogram kilograms", "mg": "mg milligram milligrams", "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces", "L": "l liter liters litre litres", "mL": "ml milliliter milliliters",
    "mph": "mph", "unit": "unit units", "radian": "rad rads radian radians",
}  # fmt: skip
UNIT = {spelling: unit for unit, spellings in UNITS.items() for spelling in spellings.split()}
NOT_UNITS = {
    "at", "least", "most", "exactly", "only", "over", "under", "half", "twice", "nearly", "almost", "unknown", "any",
    "other", "both", "or", "and", "not", "no", "is", "isn't", "than", "less", "more", "about", "approximately",
    "between", "from", "to", "if", "when", "except",
}  # fmt: skip


def split_unit(text: str) -> tuple[str, str, int]:
    """Return (formula, canonical unit or "", factor): ("5", "$", 10**6) for `5 million dollars`."""
    unit, factor = "", 1
    match = re.match(r"^(-?)\s*(?:\\?\$|(€|£))\s*(?=[\d.\\-])", text)
    if match:
        text, unit = match[1] + text[match.end() :], match[2] or "$"
    while True:
        match = (
            re.search(r"\\text\{\s*([^{}]*?)\s*\}\s*(\^\s*\{?\s*[23]\s*\}?)?$", text)
            or re.search(r"(?<=[\d}) ])\s*([a-zA-Z]{2,}\.?)\s*(\^\s*\{?\s*[23]\s*\}?)?$", text)
            or re.search(r"(?<=[\d.]) ?([msgLh])(\^\s*\{?\s*[23]\s*\}?)$", text)
            or re.search(r"\s*(\\?%|\\?\$|€|£|\^\\circ)\s*()$", text)
        )
        if not match or not text[: match.start()].strip():
            return text.strip(), unit, factor
        bare = not match[0].startswith(r"\text")
        word = match[1].strip().rstrip(".").replace("\\", "").replace("^circ", "°")
        if word.lower() in MULTIPLIERS and factor == 1:
            factor = MULTIPLIERS[word.lower()]
        else:
            name = _unit_name(word, bare)
            if name is None:
                return text.strip(), unit, factor
            power = re.sub(r"\D", "", match[2] or "")
            unit = f"{name}{power} {unit}".strip()
        text = text[: match.start()].strip()


def _unit_name(words: str, bare: bool) -> str | None:
    """Return the canonical unit, None if the words are no unit. Outside `\\text` only known units count (`bare`)."""
    parts = words.lower().split()
    if bare:
        return UNIT.get(words.lower())
    if not parts or len(parts) > 4 or set(parts) & NOT_UNITS or set(parts) & set(MULTIPLIERS):
        return None
    if any(not re.fullmatch(r"[a-zµ./°%'-]+", p) for p in parts):
        return None
    power = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3"}
    names = [UNIT.get(p, p.removesuffix("s")) for p in parts if p not in power]
    return " ".join(names) + "".join(power[p] for p in parts if p in power)
