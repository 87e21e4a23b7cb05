"""A backbone unlike ours: one tower for words and images, images as tokens of a codebook, no edit mode.

An image is a grid of cells of one colour each, drawn cell by cell after its context and read as the same tokens. Rows
are computed one by one, and nothing is cached.
"""

import json
from copy import deepcopy

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from r3_rl.errors import InputError
from r3_rl.modalities import ImageTokenSegment, TextPiece, TextSegment
from r3_rl.policy.backbone import BackboneSpec, Branch, ImageSizes
from r3_rl.policy.base import Drawing, Policy, Replay, Sampling, SupervisedLoss
from r3_rl.policy.reference import Base
from r3_rl.policy.tokens import choose, row_uniforms, token_log_probs
from r3_rl.policy.weights import digest, find_weights, read_tokenizer
from r3_rl.recipe.base import Problem, Section

CELL, LARGEST, LONGEST = 12, 48, 512
PALETTE = torch.tensor([[r, g, b] for r in (0.1, 0.9) for g in (0.1, 0.9) for b in (0.1, 0.9)])
END, BEGIN, IMAGE, CODES = range(4)  # behind the words; the colours follow
WORDS = "a red blue green circle square cross draw ? two and left of <think> </think>"


class Tower(nn.Module):
    def __init__(self, num_words, width, num_layers):
        super().__init__()
        self.sizes = {"num_words": num_words, "width": width, "num_layers": num_layers}
        self.embed, self.place = nn.Embedding(num_words + CODES + len(PALETTE), width), nn.Embedding(LONGEST, width)
        parts = (nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.layers = nn.ModuleList(nn.Sequential(*deepcopy(parts)) for _ in range(num_layers))
        self.head = nn.Linear(width, self.embed.num_embeddings)

    def forward(self, ids):
        x = self.embed(torch.tensor(ids)) + self.place.weight[: len(ids)]
        for layer in self.layers:  # each token sees itself and the mean of what came before it
            x = x + layer(torch.cat([x, x.cumsum(0) / torch.arange(1, len(ids) + 1)[:, None]], -1))
        return self.head(x).float()


class ToyPolicy(Policy):
    spec = module = tokenizer = None

    def __init__(self, module, tokenizer):
        self.spec, self.module, self.tokenizer = TOY.spec, module, tokenizer
        self.words, base = module.sizes["num_words"], Base(module)
        self.remember_base, self.reference, self.base_restored = base.remember, base.reference, base.restored

    def text(self, text, ids=None):
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids if ids is None else ids
        return [*(i for i in ids if i != self.words + END), self.words + END]

    def codes(self, image):
        return torch.cdist(nn.functional.avg_pool2d(image[None], CELL)[0].flatten(1).T, PALETTE).argmin(-1).tolist()

    def ids(self, context, *, drop_text=False):
        out = [self.words + BEGIN]
        for piece in context:
            if isinstance(piece, TextPiece):
                out += [] if drop_text and not piece.keep else self.text(piece.text, piece.token_ids)
            elif piece.use == "edit":
                raise InputError("a toy does not edit", hint="let it regenerate")
            else:
                out += [self.words + IMAGE, *(self.words + CODES + code for code in self.codes(piece.image))]
        return out

    def logits(self, context, ids, guidance=None):
        """Of what follows the context and each of `ids`: words, or colours where there is a guidance."""
        first, found = self.words + CODES if guidance else 0, []
        for drop in (False, True)[: 1 + bool(guidance and guidance.needs_text_drop)]:
            before = [*self.ids(context, drop_text=drop), *([self.words + IMAGE] if first else [])]
            found.append(self.module([*before, *(first + i for i in ids)])[len(before) - 1 :])
        out = found[0] if len(found) == 1 else found[1] + guidance.text * (found[0] - found[1])
        return out[:, first:] if first else out[:, : self.words + END + 1]

    @torch.no_grad()
    def sample(self, context, limit, seed, sampling, guidance=None):
        ids, log_probs, cutoffs = [], [], []
        for uniform in row_uniforms([seed], limit).T:
            token, log_prob, cutoff = choose(self.logits(context, ids, guidance)[-1:], sampling, uniform)
            ids, log_probs, cutoffs = [*ids, int(token)], [*log_probs, log_prob], [*cutoffs, cutoff]
            if guidance is None and ids[-1] == self.words + END:
                break
        cut = {"cutoff": torch.cat(cutoffs)} if cutoffs[0] is not None else {}
        return {"context": context, "token_ids": tuple(ids), "log_probs": torch.cat(log_probs), **cut}

    def write(self, contexts, sampling, seeds, heard=None):
        out = []
        for row, (context, seed) in enumerate(zip(contexts, seeds, strict=True)):
            found = self.sample(context, sampling.max_new_tokens, seed, sampling)
            words = [i for i in found["token_ids"] if i < self.words]
            how = {"ended": len(words) < len(found["token_ids"]), "temperature": sampling.temperature or 1.0}
            out.append(TextSegment(**found, **how, text=self.tokenizer.decode(words)))
            if heard and heard[row]:  # it samples a text in one piece
                heard[row](out[-1].text)
        return out

    def draw(self, contexts, drawings, seeds, noise_seeds=None):
        out = []
        for context, drawing, seed in zip(contexts, drawings, seeds, strict=True):
            grid = [side // CELL for side in drawing.size]
            found = self.sample(context, grid[0] * grid[1], seed, Sampling(), drawing.guidance)
            cells = PALETTE[list(found["token_ids"])].T.unflatten(1, grid)
            image = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
            out.append(ImageTokenSegment(**found, image=image, drawing=drawing))
        return out

    def log_probs(self, context, ids, guidance=None, **how):
        return token_log_probs(self.logits(context, ids[:-1], guidance), torch.tensor(ids), **how)

    def replay(self, segments):
        return [self.scored(s) for s in segments]

    def scored(self, s):
        if isinstance(s, TextSegment):
            found = self.log_probs(s.context, s.token_ids, temperature=s.temperature, cutoff=s.cutoff)
        else:
            found = self.log_probs(s.context, s.token_ids, s.drawing.guidance)
        return Replay(log_probs=found)

    def num_tokens(self, segments):
        return sum(len(self.ids(s.context)) + len(s.token_ids) for s in segments)

    def targets(self, examples):
        shown = [e for e in examples if e.image is not None]
        words = [() if e.answer is None else (TextPiece(text=e.answer),) for e in shown]
        drawn = [(e.context + before, self.codes(e.image)) for e, before in zip(shown, words, strict=True)]
        return drawn, [(e.context, self.text(e.answer)) for e in examples if e.answer is not None]

    def supervised(self, examples, noise, generator):
        (drawn, answers), (num_flow, num_text) = self.targets(examples), self.supervised_sizes(examples, noise)
        flow = sum((-self.log_probs(*one, Drawing().guidance).sum() for one in drawn), torch.zeros(()))
        text = sum((-self.log_probs(*one).sum() for one in answers), torch.zeros(()))
        return SupervisedLoss(flow=flow, num_flow=num_flow, text=text, num_text=num_text)

    def supervised_sizes(self, examples, noise):
        drawn, answers = self.targets(examples)
        return sum(len(codes) for _, codes in drawn), sum(len(ids) for _, ids in answers)


class ToySize(Section):
    width: int = Field(32, ge=2, description="Width of a token.")
    num_layers: int = Field(2, ge=1, description="Layers.")


class ToyBackbone:
    size_section = ToySize
    spec = BackboneSpec(
        name="toy", title="Toy", licence="Apache-2.0", refines="regenerate", draws="tokens", matrices=("layers.",),
        branches={"shared": Branch(adapted=r"layers\.\d+\.[13]")}, layers=r"layers\.\d+\..*",
    )  # fmt: skip

    def refusal(self, folder):
        return "" if (folder / "toy.json").is_file() else "it has no toy.json"

    def sizes(self, folder):
        return ImageSizes(stride=CELL, largest=LARGEST, look_tokens=2)

    def load(self, folder, *, dtype, device, random_init=False, attention="auto"):
        module = Tower(**json.loads((folder / "toy.json").read_text()))
        if not random_init:
            module.load_state_dict(load_file(folder / "toy.safetensors"))
        return ToyPolicy(module.to(device, dtype).requires_grad_(False).eval(), read_tokenizer(folder))

    def new(self, size, tokenizer, *, image_size, background, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ToyPolicy(Tower(tokenizer.get_vocab_size(), size.width, size.num_layers), tokenizer)

    def misfits(self, size, image_size):
        return [Problem("width", f"a world of {image_size} pixels has no cells of {CELL}")] if image_size % CELL else []

    def describe(self, size):
        return f"One tower of {size.num_layers} layers"

    def fingerprint(self, folder):
        return digest({"": find_weights(folder, ("toy.safetensors",))})

    def save(self, policy, folder, *, dtype=None):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "toy.json").write_text(json.dumps(policy.module.sizes))
        weights = {n: t.to(dtype or t.dtype) for n, t in policy.module.state_dict().items()}
        save_file(weights, folder / "toy.safetensors")
        policy.tokenizer.save(str(folder / "tokenizer.json"))

    def look(self, policy, images):
        return None

    def sketch(self, policy, examples, generator):
        return None

    def probe(self, policy, task=""):
        return policy.module(list(range(policy.module.embed.num_embeddings))).detach().flatten()

    def write_tiny(self, folder, *, seed=0):
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS.split())}, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.save(self.new(ToySize(), words, image_size=LARGEST, background=0.5, seed=seed), folder)
        return folder


TOY = ToyBackbone()
