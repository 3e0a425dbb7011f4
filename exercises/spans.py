"""Span F1: the score of named entity recognition, from BIO tags that may be no valid ones (App. A).

A tag is "O" (outside), "B-TYPE" (a span begins) or "I-TYPE" (inside of one), and TYPE is a word without a
hyphen, such as PER. A model predicts a tag at a time, so an "I-" may stand where nothing goes on. It is
*repaired*, in gold tags and in predicted ones alike: an I- that does not go on with a span of its own type
begins a new one.
"""

def spans(tags):
    """The spans of one sentence, a list of (type, first, last), from left to right.

    tags: a list of one tag or more. first and last: the numbers of the span's first and last word, from 0.

    spans(["B-LOC", "I-LOC", "O", "B-PER"]) is [("LOC", 0, 1), ("PER", 3, 3)].
    """
    raise NotImplementedError("spans is yours to write: the spans of a sentence's tags, repaired")

def span_f1(gold, predicted):
    """The F1 of whole spans over all sentences together, from 0 to 100, a number.

    gold, predicted: lists of sentences, each a list of tags; as many sentences, of the same lengths.
    A predicted span is right if the same sentence has a gold span with its type, first and last word. With
    the counts of right, gold and predicted spans in all sentences and all types,

        P = right / predicted      R = right / gold      F1 = 100 * 2 P R / (P + R)

    and 0 where one of these would divide by 0.
    """
    raise NotImplementedError("span_f1 is yours to write: the F1 of spans over all sentences")
