"""Sliding windows and first subwords: how a tagger reads a sentence that is too long (App. A).

An encoder takes 128 subwords, special tokens among them. A longer sentence is shown in several windows, from
left to right. A tagger *reads* each word at its first subword, once, in one of the windows; what stands left
of the words that a window reads is *context*: seen again, but not read again.
"""

def windows(lengths, room, context):
    """The windows of a sentence, a list of (left, right, read), from left to right.

    lengths: how many subwords each word has, a list of ints, 1 or more each; [] has no windows.
    room: the most subwords that a window shows, an int; special tokens are not counted here.
    context: an int, 0 or more, less than room.

    The subwords of the sentence are numbered from 0. A window shows the subwords left to right - 1, and reads
    the words that no window before it has read, from the first of them on:
    - left is `context` subwords before the first subword of the first word that it reads, or 0 where there
      are fewer. (The first window begins at 0.)
    - It reads as many words as fit into the room whole, one after the other, and ends with the last of them.
    - It reads one word at least. Where already the first one does not fit, behind its context, it alone is
      read, and cut: the window ends when it is full.
    read: for each word that the window reads, the place of its first subword in the window; 0 is the place
    of the subword `left`. A list of ints.

    windows([2, 2, 1], 4, 1) is [(0, 4, [0, 2]), (3, 5, [1])].
    windows([1, 4, 1], 4, 1) is [(0, 1, [0]), (0, 4, [1]), (4, 6, [1])]: alone, the second word
    would fit; behind its context it is cut.
    """
    raise NotImplementedError("windows is yours to write: which subwords each window shows, and reads where")
