"""The measured costs behind `roost plan` (src/host/costs.tsv): read, held against a measurement, written."""

from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "src/host/costs.tsv"

# A cost is true when it is within this share of what was measured; bytes also when so few lie between, and
# more for the difference of two measurements, of which each has its noise.
SHARE, BYTES = 0.10, 32
DIFFERENCES, DIFFERENCE_BYTES = ("presence_bytes", "channel_bytes"), 150


def read():
    """Name to value."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value, *_ in rows}


def is_true(table, name, measured, share=SHARE):
    """Whether a measurement is what the table has."""
    slack = BYTES if name.endswith("_bytes") else 0
    slack = DIFFERENCE_BYTES if name in DIFFERENCES else slack
    return abs(measured - table[name]) <= max(share * measured, slack)


def write(measured):
    """Puts measurements in the place of their rows."""
    lines = []
    for line in TABLE.read_text().splitlines():
        name, *rest = line.split("\t")
        if name in measured:
            digits = 2 if rest[1] != "B" else 0
            rest[0] = f"{measured[name]:.{digits}f}"
        lines.append("\t".join([name, *rest]))
    TABLE.write_text("\n".join(lines) + "\n")
