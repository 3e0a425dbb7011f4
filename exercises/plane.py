"""Eq. 3: a model anywhere in the plane of three fine-tuned models.

Three fine-tuned models differ in their parameters alone. A point (a1, a2) of the plane through them is a
model too, whose parameters are, one by one,

    theta(a1, a2) = theta_both + a1 * (theta_src - theta_both) + a2 * (theta_tgt - theta_both)

so (0, 0) is the bilingual model, (1, 0) the source-only and (0, 1) the target-only one; a1 and a2 may be
negative or larger than 1. To score many points, the module must stay as it is: torch.func.functional_call
runs a module with other parameters than its own.
"""

def outputs(model, corners, a1, a2, inputs):
    """What the model at the point (a1, a2) gives for the inputs, a tensor.

    model: a torch.nn.Module, called as model(inputs). Its own parameters are of no interest here.
    corners: three dicts {name: tensor}, of both, src and tgt in this order, with the names and shapes of
    model.named_parameters(). A parameter that the module uses under two names is there once. Buffers, which
    are not trained, are in none of them: they stay the module's own.
    inputs: a tensor, for the model.
    Whoever calls this has switched gradients off and chosen train() or eval().

    Neither the model nor the corners may be changed, not even for a moment, and nothing may be left over from
    one call to the next: rounding would pile up.
    """
    raise NotImplementedError("outputs is yours to write: a point of Eq. 3, by functional_call")
