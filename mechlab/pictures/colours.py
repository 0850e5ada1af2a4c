"""Colours that every kind of colour vision tells apart (Okabe and Ito), and what a sign looks like."""

BLUE, RED, GREY = "#0072B2", "#D55E00", "#555555"


def sign(effect: float | int) -> dict[str, str]:
    """Colour and dash of a line: above 0 solid, below 0 dashed."""
    return {"color": RED} if effect >= 0 else {"color": BLUE, "dash": "6px,3px"}
