"""A model of this kit for use elsewhere: a folder that plain transformers loads.

    python reproduce.py --export results/models/pos/e5/en/seed1/model.safetensors tagger
    python reproduce.py --export results/models/pos/e5/en/seed1/checkpoints/*.safetensors average
    python reproduce.py --export BOTH.safetensors=0.75 SOURCE.safetensors=0.25 point   # Eq. 1, alpha .75

    tagger = transformers.pipeline("token-classification", "tagger", ignore_labels=[])
    print([(found["word"], found["entity"]) for found in tagger("She saw old films .")])

Several files give their mean, by weights where they have some. A word's label is that of its first subword, a
pair's (XNLI) that of the first token; of the parser the encoder alone can be read by other programs.
"""

import re
from pathlib import Path

import torch
import transformers

import heads
import results
from results import KitError

def export(asked, encoder, tasks):
    """Write the folder that `asked`, [FILE or FILE=WEIGHT, ..., FOLDER], names, and return a sentence on it.
    encoder: its name where the files do not tell; tasks: reproduce.TASKS. Raises KitError."""
    *files, folder = asked
    files = [re.fullmatch(r"(.*?\.safetensors)(?:=(-?[0-9]*\.?[0-9]+))?", file) for file in files]
    if not all(files) or not files or folder.endswith(".safetensors") or Path(folder).exists():
        raise KitError(f"--export {' '.join(asked)}: expected FILE.safetensors or FILE.safetensors=WEIGHT, "
                       "one or more, and a FOLDER that is not there yet.")
    files = [(Path(file[1]), float(file[2] or 1)) for file in files]
    if sum(weight for _, weight in files) == 0:
        raise KitError("--export: the weights sum to 0; expected those of a mean.")
    configs = [results.load_tensors(file, None)[0]["config"] for file, _ in files]
    for (file, _), config in zip(files, configs):
        results.check_same({name: configs[0].get(name) for name in ("task", "encoder_digest")}, config, file)
    name, task = encoder or configs[0]["encoder"].replace("--", "/"), tasks[configs[0]["task"]]
    try:
        pretrained = task.load(name, "fp32")
    except KitError as e:
        hint = "" if encoder else " If it was a local folder, name that one by --encoder."
        raise KitError(f"{e}{hint}") from None
    if pretrained.digest != configs[0]["encoder_digest"]:
        raise KitError(f"{files[0][0]} was made from another encoder than {name!r}: name it by --encoder.")
    rows = torch.arange(pretrained.model.get_input_embeddings().num_embeddings)   # all
    model = task.build(pretrained, task.labels, rows)
    model.load_state_dict(heads.mixed(model, files, pretrained.model), strict=False)
    whole, said = (model.whole(), "") if task.writes else classifier(model.eval(), task.labels)
    whole.save_pretrained(folder)
    pretrained.tokenizer.save_pretrained(folder)
    return f"{folder}: a {type(whole).__name__} for transformers, of {len(files)} file(s){said}"

@torch.no_grad()
def classifier(model, labels):
    """(library's model, what to add of it): one that gives the labels of a heads.Model with a linear head, if
    there is a class that gives the same logits, else the encoder alone."""
    if not isinstance(model.head, heads.Linear):
        return model.encoder, ", without its head, which the library has no class for"
    try:
        config = type(model.encoder.config).from_dict(model.encoder.config.to_dict() | {
            "id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}})
        whole = transformers.AutoModelForTokenClassification.from_config(config).eval()
        whole.base_model.load_state_dict(model.encoder.state_dict())
        whole.classifier.load_state_dict(model.head.out.state_dict())
        ids = torch.arange(1, 9)[None]
        if torch.dist(whole(ids).logits, model.head.out(model.encoder(ids).last_hidden_state)) < 1e-3:
            return whole, ""
    except (AttributeError, RuntimeError, ValueError):   # no such class, or one with more than a linear layer
        pass
    return model.encoder, ", without its head, for which its kind has no class that gives the same labels"
