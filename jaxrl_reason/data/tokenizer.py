"""Tokenizers of a model folder, with the bytes of every token.

Spans and texts are read from the sampled ids through `token_bytes`; nothing is ever tokenised again.
"""

import functools
import json
import os

from tokenizers import Tokenizer as FastTokenizer

TOKEN_NAMES = tuple(f"{name}_token" for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"])


class Tokenizer:
    """Text to ids and back. Special tokens written in a text become their ids; none are added.

    `size` is the largest id plus one, `pad_token_id` fills masked places only.
    """

    def __init__(self, folder: str):
        self.folder = folder
        fast, pieces = (os.path.join(folder, n) for n in ("tokenizer.json", "tokenizer.model"))
        if os.path.isfile(fast):
            self._init_fast(fast)
        elif os.path.isfile(pieces):
            self._init_sentencepiece(pieces)
        else:
            raise FileNotFoundError(f"{folder}: neither tokenizer.json nor tokenizer.model")
        self.pad_token_id = 0

    def _init_fast(self, path):
        backend = FastTokenizer.from_file(path)
        backend.no_truncation()  # some folders save a length at which prompts would be cut
        backend.no_padding()
        with open(path, encoding="utf-8") as f:
            raw = json.load(f)
        added = {token["id"]: token["content"] for token in raw.get("added_tokens", [])}
        self.special = {t["content"]: t["id"] for t in raw.get("added_tokens", []) if t["special"]}
        to_bytes = _piece_decoder(raw.get("decoder"), path)
        self._bytes = {
            i: added[i].encode() if i in added else to_bytes(piece)
            for piece, i in backend.get_vocab(with_added_tokens=True).items()
        }
        self.size = max(self._bytes) + 1
        self._encode = lambda text: backend.encode(text, add_special_tokens=False).ids

    def _init_sentencepiece(self, path):
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=path)
        self.size = model.get_piece_size()
        self.special = {
            model.id_to_piece(i): i
            for i in range(self.size)
            if model.is_control(i) or (model.id_to_piece(i).startswith("<|"))
        }
        self._bytes = {i: _sentencepiece_bytes(model.id_to_piece(i)) for i in range(self.size)}
        self._encode = lambda text: model.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._encode(text)

    def token_bytes(self, ids) -> list[bytes]:
        """The bytes of each token; a token may hold part of a UTF-8 character."""
        return [self._bytes.get(int(i), b"") for i in ids]

    def decode(self, ids, skip_special: bool = True) -> str:
        """Text of the ids; broken UTF-8 becomes U+FFFD."""
        hidden = set(self.special.values()) if skip_special else ()
        return b"".join(self._bytes.get(int(i), b"") for i in ids if int(i) not in hidden).decode(
            errors="replace"
        )

    @functools.cached_property
    def named_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token` … of tokenizer_config.json, which chat templates may write."""
        path = os.path.join(self.folder, "tokenizer_config.json")
        if not os.path.isfile(path):
            return {}
        with open(path, encoding="utf-8") as f:
            raw = json.load(f)
        named = {name: raw[name] for name in TOKEN_NAMES if raw.get(name)}
        return {k: v["content"] if isinstance(v, dict) else v for k, v in named.items()}

    @functools.cached_property
    def chat_template(self) -> str:
        """The folder's own chat template (Jinja), from chat_template.jinja or tokenizer_config.json."""
        path = os.path.join(self.folder, "chat_template.jinja")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as f:
                return f.read()
        path = os.path.join(self.folder, "tokenizer_config.json")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as f:
                template = json.load(f).get("chat_template")
            if isinstance(template, str):
                return template
        raise ValueError(f"{self.folder}: template 'chat' asked for, but the tokenizer has none")


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _piece_decoder(decoder, path):
    """Function piece -> bytes for the decoder named in a tokenizer.json."""
    steps = decoder.get("decoders", [decoder]) if decoder else []
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        table = _byte_of_char()
        return lambda piece: bytes(table[c] for c in piece)
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _sentencepiece_bytes
    raise ValueError(f"{path}: decoder {sorted(kinds)} is not supported (ByteLevel, Metaspace)")


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()
