"""Rows of SVMlight and Vowpal Wabbit text, from the bytes of a block of whole lines to arrays, in one pass.

Both kernels write, of each good row i: where its label, its weight and its tag stand in ``texts[i]`` (start and stop of each,
0 and 0 for one that is absent), its line, counted from 0, and where the line starts in ``places[i]``, and its entries, from
``starts[i]`` on, into ``keys`` and ``values``. Of a value that `number_at` can't do, entry, start and stop go to ``hard``, and
the factor that it is still to be multiplied by to ``values``. Blank lines are no rows.

They return ``(rows, entries, hard, bad, line, start, stop, why)``: how many of each, and of the first bad row its line, where
the trouble starts and stops, and what it is. A bad row leaves nothing behind.
"""

# mypy: allow-untyped-defs, no-check-untyped-defs, allow-untyped-decorators

import numba
import numpy as np

from adagrad.cli.kernels.hashing import xxh64
from adagrad.cli.kernels.parsing import BAD, HARD, bare, number_at
from adagrad.kernels.compiling import kernel

__all__ = ["LABEL", "NAME", "NO_BAR", "NO_INDEX", "SCALE", "THIRD", "VALUE", "copy_texts", "svmlight", "vw"]

# What can be wrong with a row.
GOOD, LABEL, NO_INDEX, VALUE, NO_BAR, THIRD, NAME, SCALE = range(8)

_inline = numba.njit(error_model="numpy", forceinline=True)
_0, _1, _2, _3, _4 = (np.uint64(n) for n in range(5))
_10 = np.uint64(10)
_LARGEST = np.uint64(10**18)  # an index that more digits could make wrap around
_BREAK, _SPACE, _HASH, _QUOTE, _COLON, _BAR = (ord(c) for c in "\n #':|")


@_inline
def _skip(data, at, stop):
    """Behind the spaces at ``at``."""
    while at < stop and data[at] <= _SPACE and data[at] != _BREAK:
        at += _1
    return at


@_inline
def _word(data, at, stop, mark, other):
    """Where the word at ``at`` ends: before a space or one of two marks."""
    while at < stop and data[at] > _SPACE and data[at] != mark and data[at] != other:
        at += _1
    return at


@_inline
def _is_qid(data, at, stop):
    if at + _4 > stop or data[at] != 113:
        return False
    return data[at + _1] == 105 and data[at + _2] == 100 and data[at + _3] == _COLON


@_inline
def _line_end(data, at, stop):
    while at < stop and data[at] != _BREAK:
        at += _1
    return at


@kernel
def svmlight(data, powers, texts, places, starts, keys, values, hard):
    """``label [qid:id] index:value ... [# comment]``; the key of an entry is its index, the tag of a row its qid."""
    data, powers = bare(data), bare(powers)
    stop = np.uint64(data.size)
    at, line = _0, 0
    rows = entries = hards = bad = 0
    first = (0, _0, _0, GOOD)
    while at < stop:
        begin, why, wrong = at, GOOD, at
        kept, kept_hard = entries, hards
        at = _skip(data, at, stop)
        if at < stop and data[at] != _BREAK and data[at] != _HASH:
            label = at
            at = _word(data, at, stop, _COLON, _HASH)
            label_end = at
            if at < stop and data[at] == _COLON:  # an index: there is no label
                at = label_end = label
            tag = tag_end = _0
            while True:
                at = _skip(data, at, stop)
                if at >= stop or data[at] == _BREAK or data[at] == _HASH:
                    break
                wrong = at
                if _is_qid(data, at, stop):
                    tag = at + _4
                    at = tag_end = _word(data, tag, stop, _HASH, _HASH)
                    continue
                index = _0
                while at < stop and 48 <= data[at] <= 57 and index < _LARGEST:
                    index = index * _10 + np.uint64(data[at] - np.uint8(48))
                    at += _1
                if at == wrong or at >= stop or data[at] != _COLON:
                    why = NO_INDEX
                    break
                text = at + _1
                value, kind, at = number_at(data, text, stop, powers)
                if kind == BAD or (at < stop and data[at] > _SPACE and data[at] != _HASH):
                    why = VALUE
                    break
                keys[entries] = index
                values[entries] = value
                if kind == HARD:
                    values[entries] = 1.0
                    hard[hards, 0], hard[hards, 1], hard[hards, 2] = entries, text, at
                    hards += 1
                entries += 1
            if why == GOOD:
                texts[rows, 0], texts[rows, 1], texts[rows, 4], texts[rows, 5] = label, label_end, tag, tag_end
                texts[rows, 2] = texts[rows, 3] = 0
                places[rows, 0], places[rows, 1] = line, begin
                rows += 1
                starts[rows] = entries
            else:
                if bad == 0:
                    first = (line, wrong, _word(data, wrong, stop, _HASH, _HASH), why)
                bad += 1
                entries, hards = kept, kept_hard
        at = _line_end(data, at, stop) + _1
        line += 1
    return rows, entries, hards, bad, first[0], first[1], first[2], first[3]


@kernel
def vw(data, powers, texts, places, starts, keys, values, hard):
    """``[label [weight]] ['tag]|namespace[:scale] name[:value] ... |...``; a tag that touches the bar needs no quote.

    The key of an entry is the XXH64 of its name, seeded with that of its namespace, which is a category's in a CSV.
    """
    data, powers = bare(data), bare(powers)
    stop = np.uint64(data.size)
    at, line = _0, 0
    rows = entries = hards = bad = 0
    first = (0, _0, _0, GOOD)
    while at < stop:
        begin, why, wrong = at, GOOD, at
        kept, kept_hard = entries, hards
        at = _skip(data, at, stop)
        if at < stop and data[at] != _BREAK:
            label = label_end = weight = weight_end = tag = tag_end = _0
            count = 0
            while at < stop and data[at] != _BREAK and data[at] != _BAR:
                wrong = at
                at = _word(data, at, stop, _BAR, _BAR)
                if data[wrong] == _QUOTE:
                    tag, tag_end = wrong + _1, at
                elif at < stop and data[at] == _BAR:
                    tag, tag_end = wrong, at
                elif count == 0:
                    label, label_end = wrong, at
                    for i in range(at - wrong):
                        if data[wrong + np.uint64(i)] == _COLON:
                            why = LABEL
                    count = 1
                elif count == 1:
                    weight, weight_end = wrong, at
                    count = 2
                else:
                    why = THIRD
                if why != GOOD:
                    break
                at = _skip(data, at, stop)
            bar = at
            while bar < stop and data[bar] != _BREAK and data[bar] != _BAR:
                bar += _1
            if bar >= stop or data[bar] == _BREAK:
                why, wrong = NO_BAR, _skip(data, begin, stop)
            seed, scale = _0, 1.0
            while why == GOOD and at < stop and data[at] != _BREAK:
                wrong = at
                if data[at] == _BAR:
                    name = at + _1
                    at = _word(data, name, stop, _COLON, _BAR)
                    seed, scale = xxh64(data, name, at, _0), 1.0
                    if at < stop and data[at] == _COLON:
                        scale, kind, at = number_at(data, at + _1, stop, powers)
                        if kind in (BAD, HARD) or (at < stop and data[at] > _SPACE and data[at] != _BAR):
                            why = SCALE
                            break
                    at = _skip(data, at, stop)
                    continue
                at = _word(data, at, stop, _COLON, _BAR)
                if at == wrong:
                    why = NAME
                    break
                key = xxh64(data, wrong, at, seed)
                value = scale
                if at < stop and data[at] == _COLON:
                    text = at + _1
                    number, kind, end = number_at(data, text, stop, powers)
                    if kind == BAD or (end < stop and data[end] > _SPACE and data[end] != _BAR):
                        why = VALUE
                        break
                    if kind == HARD:
                        hard[hards, 0], hard[hards, 1], hard[hards, 2] = entries, text, end
                        hards += 1
                    else:
                        value = number * scale
                    at = end
                keys[entries] = key
                values[entries] = value
                entries += 1
                at = _skip(data, at, stop)
            if why == GOOD:
                texts[rows, 0], texts[rows, 1], texts[rows, 2], texts[rows, 3] = label, label_end, weight, weight_end
                texts[rows, 4], texts[rows, 5] = tag, tag_end
                places[rows, 0], places[rows, 1] = line, begin
                rows += 1
                starts[rows] = entries
            else:
                if bad == 0:
                    first = (line, wrong, _word(data, wrong, stop, _SPACE, _SPACE), why)
                bad += 1
                entries, hards = kept, kept_hard
        at = _line_end(data, at, stop) + _1
        line += 1
    return rows, entries, hards, bad, first[0], first[1], first[2], first[3]


@kernel
def copy_texts(data, spans, instead, out, offsets):
    """The texts ``data[spans[i, 0]:spans[i, 1]]`` end to end into ``out``, ``instead`` for those that are empty."""
    total = 0
    for i in range(spans.shape[0]):
        offsets[i] = total
        for j in range(spans[i, 0], spans[i, 1]):
            out[total] = data[j]
            total += 1
        if spans[i, 0] == spans[i, 1]:
            for j in range(instead.size):
                out[total] = instead[j]
                total += 1
    offsets[spans.shape[0]] = total
