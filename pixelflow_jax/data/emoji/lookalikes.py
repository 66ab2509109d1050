"""Emoji that sets draw alike under several code points.

A held-out one must not be seen in training under another name. Found by comparing the
pictures of the four styles pixel by pixel.
"""

import re

# Territories that fly the flag of a country, and countries whose flags are drawn alike.
FLAGS = (
    *(("AU", "HM"), ("FR", "CP", "MF"), ("NO", "BV", "SJ"), ("US", "UM")),
    *(("IO", "DG"), ("ES", "EA"), ("ID", "MC"), ("RO", "TD")),
)
REGIONAL_A = 0x1F1E6  # the first of the letters that flags are written with
# People whom a set draws alike whether a man, a woman or a person is meant.
PEOPLE = {
    "1F468-200D-1F9B1": "1F9D1-200D-1F9B1",  # curly hair
    "1F468-200D-1F9B2": "1F9D1-200D-1F9B2",  # bald
    "1F468-200D-1F9BC": "1F9D1-200D-1F9BC",  # in a motorized wheelchair
    "1F468-200D-1F9BC-200D-27A1-FE0F": "1F9D1-200D-1F9BC-200D-27A1-FE0F",
    "1F469-200D-2764-FE0F-200D-1F468": "1F491",  # couple with heart
    "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468": "1F48F",  # kiss
    "1F473-200D-2640-FE0F": "1F473",  # turban
    "1F6B6-200D-2642-FE0F": "1F6B6",  # walking
    "1F6B6-200D-2642-FE0F-200D-27A1-FE0F": "1F6B6-200D-27A1-FE0F",
    "1F93C-200D-2642-FE0F": "1F93C",  # wrestlers
    "1F9CD-200D-2642-FE0F": "1F9CD",  # standing
    "1F9CE-200D-2642-FE0F": "1F9CE",  # kneeling
    "1F9CE-200D-2642-FE0F-200D-27A1-FE0F": "1F9CE-200D-27A1-FE0F",
    "1F63A": "1F431",  # the cat that smiles, and the cat
    "1F46A": "1F9D1-200D-1F9D1-200D-1F9D2",  # family
}
# Families are one grey drawing a size in the newest sets, whoever they are of.
FAMILY = re.compile(r"(1F46[89]-200D-){1,2}1F46[67](-200D-1F46[67])?")


def flag(country: str) -> str:
    """The code points of the flag of a country of two letters, as in "1F1E6-1F1FA"."""
    return "-".join(f"{REGIONAL_A + ord(one) - ord('A'):X}" for one in country)


FLOWN = {flag(one): flag(group[0]) for group in FLAGS for one in group}


def look(codepoints: str) -> str:
    """The code points of one emoji for all that are drawn like `codepoints`.

    Those of a base emoji in hexadecimal, joined by "-", as Unicode's tables have them.
    """
    if FAMILY.fullmatch(codepoints):
        adults = re.sub("1F46[89]", "1F9D1", codepoints)
        return re.sub("1F46[67]", "1F9D2", adults)
    return FLOWN.get(codepoints, PEOPLE.get(codepoints, codepoints))
