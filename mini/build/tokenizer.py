"""A CLIP-style byte-pair tokenizer trained on the miniature world's captions.

Words of the prompt grammar become single tokens; any other text falls into smaller pieces, down to bytes.
"""

import json
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from configs.inference_config import NEGATIVE_PROMPT
from id_booth.prompts import AGES, BACKGROUNDS
from mini.build.captions import names

MAX_TOKENS = 32
VOCABULARY = 2048
NAMES = 1000
START, END = "<|startoftext|>", "<|endoftext|>"
# The splitting rule of OpenAI CLIP's simple_tokenizer.py, as transformers' CLIPTokenizer applies it.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
FURTHER_WORDS = (
    "studio lab wild man woman person people boy girl picture image close up smiling laughing sad surprised "
    "speaking neutral glasses beard goatee moustache hair head skin long short very curly bald bob bun pale "
    "tan dark blond brown black red white grey blue green "
    "looking left right front with without wearing the and in of on at an"
)


def corpus():
    """Sentences of the prompt grammar, some everyday words, and the names of the fictional people."""
    sentences = [
        f"face {pose} photo of {age} {gender} sks person, {place} background"
        for pose, age, gender, place in product(
            ("portrait", "side-portrait"), AGES, ("male", "female"), (*BACKGROUNDS, "studio")
        )
    ]
    lines = ["photo of a person", "photo of sks person", NEGATIVE_PROMPT, FURTHER_WORDS, *names(NAMES)]
    return [*sentences, *lines * 5]


def train_merges(vocabulary=VOCABULARY):
    """Byte-pair merges learnt on :func:`corpus`, as (left, right) pairs, most frequent first."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build_tokenizer(folder, max_tokens=MAX_TOKENS):
    """Train a transformers CLIPTokenizer and save it to ``folder`` (vocab.json, merges.txt, ...).

    The vocabulary is laid out as CLIP's: bytes, bytes that end a word, merges, start and end of text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = train_merges()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *[letter + "</w>" for letter in letters], *[a + b for a, b in merges], START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *[f"{a} {b}" for a, b in merges]]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=max_tokens,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
