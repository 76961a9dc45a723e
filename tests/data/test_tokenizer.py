import json
import os
import shutil

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model.hf import tokenizer_size
from tests.toys import EMBEDDED

REAL = os.environ.get("JAXRL_REASON_QWEN05B", "")
TEXTS = [
    "",
    "What is 12 + 345?\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "  spaces   between\tand\r\nlines \n\n",
    "naïve café — Ω ≤ ∑ 数学 👩‍🔬 😀",
    "{'a': [1, {}], \"b\": \\frac{1}{2}} <think>x</think>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_start|",
    "don't WE'LL I'm 3.14159",
    "\x00\x01\x7f",
]


@pytest.fixture(scope="module", params=["embedded", pytest.param("real", marks=pytest.mark.slow)])
def folder(request):
    if request.param == "real" and not REAL:
        pytest.skip("JAXRL_REASON_QWEN05B names no folder")
    return str(EMBEDDED) if request.param == "embedded" else REAL


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(ids)).decode() == text
    assert tokenizer.decode(ids, skip_special=False) == text
    assert all(0 <= i < tokenizer.size for i in ids)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_transformers(folder, tokenizer, text):
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    ids = tokenizer.encode(text)
    assert reference(text, add_special_tokens=False)["input_ids"] == ids
    for skip in (True, False):
        theirs = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids, skip_special=skip) == theirs
    assert tokenizer.size == len(reference)


def test_every_ids_bytes_are_what_the_library_decodes(folder, tokenizer):
    backend = FastTokenizer.from_file(f"{folder}/tokenizer.json")
    ids = range(0, tokenizer.size, 1 if tokenizer.size < 1000 else 13)
    for i in ids:
        (piece,) = tokenizer.token_bytes([i])
        assert piece
        theirs = backend.decode([i], skip_special_tokens=False)
        assert piece.decode(errors="replace") == theirs


def test_characters_split_over_tokens(tokenizer):
    text = "𝔘𝔳"
    ids = tokenizer.encode(text)
    pieces = tokenizer.token_bytes(ids)
    assert len(ids) > len(text)
    assert any("\ufffd" in piece.decode(errors="replace") for piece in pieces)
    assert b"".join(pieces) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[:-1]) != text  # broken at the end, and no error


def test_special_tokens_are_parsed_and_named(tokenizer):
    text = "<|im_start|>x<|im_end|>"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.special["<|im_start|>"]
    assert ids[-1] == tokenizer.special["<|im_end|>"]
    assert len(ids) == 3
    assert tokenizer.token_bytes(ids) == [b"<|im_start|>", b"x", b"<|im_end|>"]
    assert tokenizer.decode(ids) == "x"
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} <= set(tokenizer.special)


def test_sizes(folder, tokenizer):
    assert tokenizer.size == tokenizer_size(folder)
    assert tokenizer.size == (512 if folder == str(EMBEDDED) else 151665)
    assert tokenizer.token_bytes([tokenizer.size, 10**6]) == [b"", b""]  # rows without a token


def test_the_embedded_ids():
    special = Tokenizer(str(EMBEDDED)).special
    assert special == {"<|endoftext|>": 509, "<|im_start|>": 510, "<|im_end|>": 511}
    config = json.loads((EMBEDDED / "config.json").read_text())
    assert config["eos_token_id"] == [509, 511]


def test_settings_that_cut_or_pad_are_not_obeyed(tmp_path):
    backend = FastTokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "a prompt of more than three tokens"
    assert Tokenizer(str(tmp_path)).encode(text) == Tokenizer(str(EMBEDDED)).encode(text)


@pytest.fixture(scope="module")
def pieces_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    lines = ["What is 1 + 2?", "The answer is \\boxed{3}.", "Add 3 and 4, then halve it."] * 20
    (folder / "lines.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    return str(folder)


def test_sentencepiece_models(pieces_folder):
    tokenizer = Tokenizer(pieces_folder)
    assert tokenizer.size == tokenizer_size(pieces_folder) == 330
    text = "The answer is  \\boxed{4}."
    ids = tokenizer.encode(text)
    assert len(ids) < len(text)
    assert b"".join(tokenizer.token_bytes(ids)).decode() == text
    assert {"<s>", "</s>", "<|im_start|>", "<|im_end|>"} <= set(tokenizer.special)
    ids = tokenizer.encode("<|im_start|>add<|im_end|>")
    assert ids[0] == tokenizer.special["<|im_start|>"]
    assert ids[-1] == tokenizer.special["<|im_end|>"]
    assert tokenizer.decode(ids) == "add"


def test_sentencepiece_byte_fallback(pieces_folder):
    tokenizer = Tokenizer(pieces_folder)
    text = "add Ω and 😀\n"
    ids = tokenizer.encode(text)
    pieces = tokenizer.token_bytes(ids)
    assert pieces[-5:] == [*(bytes([b]) for b in "😀".encode()), b"\n"]
    assert b"".join(pieces).decode() == text
    assert tokenizer.decode(ids) == text
    model = sentencepiece.SentencePieceProcessor(model_file=f"{pieces_folder}/tokenizer.model")
    assert ids == model.encode(text)


def test_tokenizer_json_with_byte_fallback(tmp_path):
    backend = FastTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    alphabet = ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=alphabet, show_progress=False)
    backend.train_from_iterator(["add one and two", "add two and one"], trainer)
    raw = json.loads(backend.to_str())
    raw["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer(str(tmp_path))
    ids = tokenizer.encode("add 😀 one")
    assert b"".join(tokenizer.token_bytes(ids)).decode() == "add 😀 one"
    assert bytes([0xF0]) in tokenizer.token_bytes(ids)


def test_added_tokens_that_are_not_special_are_text(tmp_path):
    backend = FastTokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(str(tmp_path))
    ids = tokenizer.encode("<think>é<|im_end|>")
    assert ids[0] == 512 and tokenizer.size == 513
    assert "<think>" not in tokenizer.special
    assert tokenizer.decode(ids) == "<think>é"


def test_unsupported_tokenizers_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.json nor tokenizer.model"):
        Tokenizer(str(tmp_path))
    raw = json.loads((EMBEDDED / "tokenizer.json").read_text())
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"tokenizer.json: decoder \['WordPiece'\]"):
        Tokenizer(str(tmp_path))


def test_where_the_chat_template_comes_from(tmp_path):
    shutil.copy(EMBEDDED / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="template 'chat' asked for"):
        _ = Tokenizer(str(tmp_path)).chat_template
    shutil.copy(EMBEDDED / "tokenizer_config.json", tmp_path)
    assert "<|im_start|>" in Tokenizer(str(tmp_path)).chat_template
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert Tokenizer(str(tmp_path)).chat_template == "{{ messages }}"
