"""Write data/text/smollm2.jsonl: text that the model of the course wrote itself.

The tuned lens (notebook 21), the sparse autoencoder (26) and the covariance for ROME (34) need a few hundred
thousand tokens of ordinary text. What the model writes is free of licences and is the distribution that the model
itself holds likely. Half of it are answers to questions made from the lists below, half is written from nothing.

    python data/make/text.py            about 40 minutes on two free cores

Drawn at temperature 0.9 from the likeliest tokens that make up 0.95. The seed is fixed, but another machine or
torch version draws other text: the file in the repository is what the course's numbers stand on.
"""

import json
import random
import re
import sys
from itertools import product
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechlab.loading import checkpoints

TARGET = Path(__file__).parents[1] / "text" / "smollm2.jsonl"
TOKENS, BATCH = 96, 48
FORMS = [
    "What is {}?", "Tell me three facts about {}.", "Write a short story about {}.", "Explain {} to a child.",
    "Why do people care about {}?", "Give me some advice about {}.", "Write a poem about {}.",
    "What is the history of {}?", "Write a short news article about {}.", "Write a friendly letter about {}.",
    "What are the problems with {}?", "How has {} changed over the last hundred years?",
    "Write a dialogue between two friends about {}.", "Make a list of five words about {} and explain each.",
    "What would a sceptic say about {}?", "Write a review of a book about {}.",
]  # fmt: skip
TOPICS = [
    "volcanoes", "bread", "the city of Paris", "bicycles", "the moon", "football", "chess", "the human heart",
    "honey bees", "the Roman Empire", "train travel", "jazz music", "the Python language", "money", "rain",
    "photosynthesis", "wolves", "the French Revolution", "coffee", "learning German", "good manners", "hospitals",
    "oil painting", "electricity", "the ocean", "small towns", "mathematics", "winter holidays", "elections",
    "dinosaurs", "gardening", "air travel", "the Japanese language", "friendship", "bridges", "vaccines",
    "school lunch", "computer games", "wine", "the stars",
]  # fmt: skip


def write(model, tokenizer, prompts: list[str], *, chat: bool) -> list[str]:
    """One continuation for each prompt, at most TOKENS tokens, without special tokens."""
    texts = []
    for start in range(0, len(prompts), BATCH):
        ids = tokenizer(
            prompts[start : start + BATCH], return_tensors="pt", padding=True, add_special_tokens=False
        )
        with torch.inference_mode():
            found = model.generate(
                **ids, max_new_tokens=TOKENS, do_sample=True, temperature=0.9, top_p=0.95, top_k=0
            )
        texts += tokenizer.batch_decode(found[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{'answers' if chat else 'free'}: {len(texts)} of {len(prompts)}", file=sys.stderr, flush=True)
    return texts


def fit_to_print(text: str) -> bool:
    """No addresses (they might be somebody's), nothing that a class should not read by surprise."""
    return not re.search(
        r"https?:|www\.|@|\b(sex\w*|nazi\w*|suicid\w*|murder\w*|rap(e|ed|ist)|porn\w*|nude)\b", text, re.I
    )


def main(count: int = 1200) -> None:
    folder = checkpoints.prepare("raw")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    questions = [form.format(topic) for form, topic in product(FORMS, TOPICS)] * 2
    random.Random(0).shuffle(questions)
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in questions[:count]
    ]
    asked.sort(key=lambda prompt: len(tokenizer(prompt)["input_ids"]))  # little padding
    texts = write(model, tokenizer, asked, chat=True) + write(
        model, tokenizer, ["<|endoftext|>"] * count, chat=False
    )
    texts = [text.strip() for text in texts]
    texts = [
        text
        for text in dict.fromkeys(texts)
        if fit_to_print(text) and len(tokenizer(text)["input_ids"]) >= 32
    ]
    random.Random(1).shuffle(texts)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    print(
        f"{len(texts)} texts, {sum(len(tokenizer(t)['input_ids']) for t in texts)} tokens, {TARGET.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
