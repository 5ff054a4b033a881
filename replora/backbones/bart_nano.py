"""`bart_nano`: a BART of random weights and a vocabulary of words, for demonstrations without a network.

Its tokenizer knows the words of `replora.datasets.vision_language.demo` and of the prompts, one token each; what it
does not know is `<unk>`. Special tokens have the numbers that BART gives them.
"""

from __future__ import annotations

from typing import Any

from replora.datasets.vision_language.demo import WORDS

BART_NANO = "bart_nano"
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def bart_nano_words() -> list[str]:
    """The words of the demonstration's questions, captions and answers, and of all prompts."""
    prompts = ["vqa", "gpa", "nlvr", "caption", "tvqa", "how2qa", "tvc", "yc2c"]
    marks = ["[", "]", "Subs", "Q", "TS", "Choices", "(", ")", "-", ",", ".", ":", "?", "true", "false"]
    marks += [f"a{i}" for i in range(5)] + [str(i) for i in range(10)]
    return list(dict.fromkeys([*prompts, *marks, *WORDS]))


def bart_nano_config() -> dict[str, Any]:
    """Arguments of a BART configuration: two layers of width 128 each side."""
    return {
        "vocab_size": len(SPECIAL_TOKENS) + len(bart_nano_words()),
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 256,
        "max_position_embeddings": 128,
        # The scale at which random layers pass a signal on; BART's 0.02 is too small for frozen random ones.
        "init_std": 0.09,
    }


def bart_nano_tokenizer() -> Any:
    """Words and punctuation marks, one token each, between `<s>` and `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *bart_nano_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # \w+ and single marks: "[Q] how" -> [ Q ] how
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins words by spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=128,
    )
