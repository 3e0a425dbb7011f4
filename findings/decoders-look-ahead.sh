#!/usr/bin/env bash
# transformers 5.23.0: the decoders of FSMT and ProphetNet score a subword otherwise when more stands behind it.
#
# A decoder's logits at a place depend on what stands before it, or a model is trained on what it will never
# write. Seen, by how much the logits of the first four subwords change (0: not at all):
#
#     model                             another word behind   two words more behind
#     BART                              0                     0
#     FSMT, with labels                 0                     0
#     FSMT, as it is called by default  1.5                   1.6
#     FSMT, encoder_outputs without a cache, the same
#     ProphetNet (ngram 2, the default) 0                     .8
#
# FSMT makes its causal mask only where input_ids are given and no cache is used, and a cache is the default: a
# translation scored without labels (a forced decoding, a rescoring, a loss of one's own) is scored by a model
# that reads ahead. It needs use_cache=False, and input_ids rather than encoder_outputs. With ProphetNet the
# score of a prefix depends on how many subwords follow, so a target's loss depends on the longest target
# beside it, and greedy decoding with and without cache, which should only be a matter of speed, writes
# other words. No warning in either case. It matters for whoever compares what generators of several languages
# find likely (zero-shot generation, translation), and for every training loop that encodes the source once.
# (Random weights: nothing is downloaded but the packages. Installs torch.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'END'
import torch
import transformers

transformers.logging.set_verbosity_error()
ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2, decoder_start_token_id=2)
layers = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, init_std=.3,
              decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
configs = {
    "BART": transformers.BartConfig(vocab_size=60, **layers, **ids),
    "FSMT": transformers.FSMTConfig(langs=["en", "de"], src_vocab_size=60, tgt_vocab_size=60, **layers, **ids),
    "ProphetNet": transformers.ProphetNetConfig(
        vocab_size=60, hidden_size=32, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=.3, **ids)}
source = torch.tensor([[11, 12, 13, 14, 15, 16, 1]])
target = torch.tensor([[2, 21, 22, 23, 24, 25]])
other, longer = target.clone(), torch.tensor([[2, 21, 22, 23, 24, 25, 26, 27]])
other[0, -1] = 40

def changes(model, how):
    """By how much logits of the first four subwords change: with another last word, with two words more."""
    def logits(words):
        given = {"input_ids": source, "decoder_input_ids": words}
        if how == "labels":
            given["labels"] = words
        elif how == "encoder_outputs":
            given = {"encoder_outputs": model.get_encoder()(source), "decoder_input_ids": words, "use_cache": False}
        elif how == "no cache":
            given["use_cache"] = False
        return model(**given).logits[0, :4]
    first = logits(target)
    return [(logits(words) - first).abs().max().item() for words in (other, longer)]

print("transformers", transformers.__version__, "torch", torch.__version__)
seen, written = {}, {}
with torch.no_grad():
    for name, config in configs.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
        print(f"{name}: its own use_cache is {model.config.use_cache}")
        for how in ("by default", "no cache", "labels", "encoder_outputs"):
            seen[name, how] = changes(model, how)
            print(f"    {how:16} another word behind {seen[name, how][0]:.4f}, two words more {seen[name, how][1]:.4f}")
        written[name] = [model.generate(source, max_new_tokens=16, do_sample=False, num_beams=1, use_cache=cache)[0]
                         .tolist() for cache in (True, False)]
        print("    greedy decoding with and without cache:", *written[name], sep="\n        ")

def looks_ahead(name, how):
    return [change > .1 for change in seen[name, how]]

hows = ("by default", "no cache", "labels", "encoder_outputs")
expected = {("BART", how): [False, False] for how in hows} | {("ProphetNet", how): [False, True] for how in hows}
expected |= {("FSMT", how): [how in ("by default", "encoder_outputs")] * 2 for how in hows}
if {key: looks_ahead(*key) for key in seen} != expected or written["BART"][0] != written["BART"][1] or \
        written["ProphetNet"][0] == written["ProphetNet"][1] or max(seen["BART", "by default"]) > 1e-5:
    raise SystemExit("The behaviour has changed.")
END
