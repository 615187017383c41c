"""A gated recurrent network that spells names: 15,000 first names and surnames (zxcvbn)."""

import string

import torch
from torch import nn
from zxcvbn.frequency_lists import FREQUENCY_LISTS

LONGEST = 12
SYMBOLS = "." + string.ascii_lowercase  # a point before and after a name


class Speller(nn.Module):
    """The next letter's logits, for each letter of a name."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(SYMBOLS), 32)
        self.memory = nn.GRU(32, 256, batch_first=True)
        self.head = nn.Linear(256, len(SYMBOLS))

    def forward(self, names: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.memory(self.letters(names))[0])
        return logits


def load_names() -> tuple[torch.Tensor, torch.Tensor]:
    """Names padded with points, and for each letter the one that follows."""
    lists = [FREQUENCY_LISTS[name] for name in ("female_names", "male_names", "surnames")]
    names = list(dict.fromkeys(name for names in lists for name in names if name.isalpha() and name.isascii()))
    names = [name.lower() for name in names if len(name) < LONGEST]
    code = {symbol: number for number, symbol in enumerate(SYMBOLS)}
    tokens = torch.tensor([[code[symbol] for symbol in f".{name}".ljust(LONGEST + 1, ".")] for name in names])
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
