"""The best tree with one root: what a dependency parser makes of its scores.

A sentence of n words is a tree: each word has one head, another word or the artificial ROOT, and from every
word the way up, from head to head, ends at ROOT. In a treebank one word alone hangs on ROOT. The best head of
each word apart from the others may give a cycle, or two words on ROOT, so the best tree has to be looked for.
(Chu and Liu 1965 and Edmonds 1967 find the best tree with any number of words on ROOT: as long as there is a
cycle, make one node of it and start again. With that you need one idea more.)
"""

def best_tree(scores):
    """The heads of the tree with the highest total score among those in which one word alone hangs on ROOT.

    scores: a numpy array (n + 1, n + 1) of finite floats, n at least 1; scores[d, h] is that of h as head of
    d. Number 0 is ROOT, the words are 1 to n. Row 0 and the diagonal mean nothing. It must not be changed.
    Returns a list or an array of n + 1 ints, the head of each; that of ROOT is 0 by convention. The total is
    the sum of scores[d, heads[d]] over the words d from 1 to n. Of several best trees any one will do.

    best_tree(np.array([[0, 0, 0], [5, 0, 4], [5, 1, 0]], float)) is [0, 2, 0]: of totals 9 (this one), 6 and,
    with two words on ROOT, 10. A sentence of 40 words must not take more than a few seconds.
    """
    raise NotImplementedError("best_tree is yours to write: the best tree with one word on ROOT")
