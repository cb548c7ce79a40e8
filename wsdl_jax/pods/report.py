"""What a step costs, as text."""

from wsdl_jax.pods.cost import Cost, TooLarge
from wsdl_jax.pods.units import byte_size, decimal


def two_columns(rows: dict[str, str]) -> str:
    """Returns a table of two columns."""
    return "\n".join(f"{name:<20}{value}".rstrip() for name, value in rows.items())


def fits(answer: Cost | TooLarge, chip: float) -> bool:
    """Returns whether a step fits into a chip's memory of `chip` bytes."""
    return isinstance(answer, Cost) and answer.memory <= chip


def verdict(answer: Cost | TooLarge, chip: float) -> str:
    """Returns in words what a step needs of a chip's `chip` bytes of memory, and if it fits."""
    if isinstance(answer, TooLarge):
        return f"{byte_size(answer.needed)} or more of {byte_size(chip)}: does not fit"
    fit = "fits" if fits(answer, chip) else "does not fit"
    return f"{byte_size(answer.memory)} of {byte_size(chip)}: {fit}"


def cost_table(answer: Cost | TooLarge, chip: float) -> str:
    """Returns a step's cost as a table, for a chip with a memory of `chip` bytes."""
    if isinstance(answer, TooLarge):
        return two_columns({"memory per chip": verdict(answer, chip)})
    rows = {
        "memory per chip": "",
        "  arguments": byte_size(answer.arguments),
        "  outputs": byte_size(answer.outputs),
        "  temporaries": byte_size(answer.temporaries),
        "  program": byte_size(answer.program),
    }
    if answer.next_batch:
        rows["  next batch"] = byte_size(answer.next_batch)
    rows |= {
        "  total": verdict(answer, chip),
        "per chip and step": "",
        "  arithmetic": f"{decimal(answer.flops)}FLOP, "
        f"{decimal(answer.flops / answer.images)}FLOP an image",
        "  memory traffic": f"{decimal(answer.traffic)}B",
        "  collectives": f"{decimal(answer.collective_bytes)}B in {answer.collectives} operations",
    }
    if answer.loops:
        rows["  arithmetic"] = f"{decimal(answer.flops)}FLOP"
        rows["  counting"] = "one round of the loop over train.microbatches"
    rows["compile time"] = f"{answer.seconds:.1f} s"
    return two_columns(rows)
