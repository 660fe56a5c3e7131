"""Where the records of a CSV end, by the rules that Arrow's parser follows: a quote counts at the start of a field only."""

# mypy: allow-untyped-defs, no-check-untyped-defs, allow-untyped-decorators

from adagrad.kernels.compiling import kernel

__all__ = ["last_break"]


@kernel
def last_break(data, delimiter):
    """``(end, opened)``: where the last complete record ends (0: none does), and where the open quote is (-1: none)."""
    end, opened = 0, -1
    at_start = True
    i = 0
    while i < data.size:
        byte = data[i]
        if opened >= 0:
            if byte == 34:
                if i + 1 < data.size and data[i + 1] == 34:
                    i += 1
                else:
                    opened = -1
        elif byte == 34 and at_start:
            opened = i
            at_start = False
        else:
            line_break = byte == 10 or (byte == 13 and i + 1 < data.size and data[i + 1] != 10)
            at_start = line_break or byte == delimiter
            if line_break:
                end = i + 1
        i += 1
    return end, opened
