"""Large numbers in words."""


def byte_size(count: float) -> str:
    """Returns a number of bytes with a binary prefix: "6.46 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def decimal(count: float) -> str:
    """Returns a number with a decimal prefix, to stand before a unit: "1.62 T"."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.4g} {prefix}"
        count /= 1000
    return f"{count:.4g} T"
