from __future__ import annotations

import gzip
import pickle
import random
import statistics
import struct
import wave

import numpy as np
import pytest
import yaml
from PIL import Image

from mega_transformers import MegaConfig, MegaForSequenceClassification, MegaForSequencePairClassification
from mega_transformers.assets import RECIPES
from mega_transformers.errors import RecipeError
from mega_transformers.training import lra_generators
from mega_transformers.training.lra import GENERATORS, READERS, listops_tokenizer
from mega_transformers.training.lra_generators import LISTOPS_VOCABULARY, OPERATORS


def rows_of(reader, path):
    return list(READERS[reader](path))


def fails(reader, path, *parts):
    """The message of reading `path`, which must name all of `parts`."""
    with pytest.raises(RecipeError) as error:
        rows_of(reader, path)
    for part in parts:
        assert str(part) in str(error.value)


def evaluate(text):
    """The value of an expression, computed by Python from a rewritten text."""
    functions = {
        "MIN": min,
        "MAX": max,
        "MED": lambda *values: int(statistics.median(values)),
        "SM": lambda *values: sum(values) % 10,
    }
    written = {**{word: f"{word[1:]}(" for word in OPERATORS}, "]": "),"}
    python = " ".join(written.get(word, f"{word},") for word in text.split())
    return eval(python, {"__builtins__": {}, **functions})[0]


def depth_of(text):
    depth = deepest = 0
    for word in text.split():
        depth += (word in OPERATORS) - (word == "]")
        deepest = max(deepest, depth)
    return deepest


# ListOps


def test_listops_file(tmp_path):
    path = tmp_path / "basic_train.tsv"
    path.write_bytes(
        b"Source\tTarget\r\n( ( ( ( [MAX 4 ) 3 ) ( ( ( [SM 7 ) 9 ) ] ) ) ] )\t6\r\n( ( ( [MIN 5 ) 8 ) ] )\t5\r\n"
    )
    rows = rows_of("listops", path)
    assert rows == [{"text": "[MAX 4 3 [SM 7 9 ] ]", "label": 6}, {"text": "[MIN 5 8 ]", "label": 5}]
    assert [evaluate(row["text"]) for row in rows] == [6, 5]
    packed = tmp_path / "basic_val.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows_of("listops", packed) == rows


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[MIN 5 8 ]\t5\n", ["line 1", "Source"]),
        ("Source\tTarget\n[MIN 5 8 ]\t5\n[AVG 5 8 ]\t6\n", ["line 3", "AVG"]),
        ("Source\tTarget\n[MIN 5 8 ]\t10\n", ["line 2"]),
        ("Source\tTarget\n[MIN 5 8 ]\n", ["line 2"]),
        ("Source\tTarget\n\t5\n", ["line 2"]),
        ("Source\tTarget\n", ["no rows"]),
        ("", ["no rows"]),
    ],
)
def test_listops_file_that_is_none(tmp_path, text, parts):
    path = tmp_path / "basic_train.tsv"
    path.write_text(text)
    fails("listops", path, path, *parts)


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_length": 3, "max_length": 40},
        {"min_length": 20, "max_length": 60, "max_depth": 3, "max_args": 4},
        {"min_length": 4, "max_length": 12, "max_depth": 2},
    ],
)
def test_listops_values_bounds_and_uniqueness(bounds):
    rows = list(GENERATORS["listops"](400, seed=1, **bounds))
    for row in rows:
        words = row["text"].split()
        assert row["label"] == evaluate(row["text"])
        assert bounds["min_length"] < len(words) < bounds["max_length"]
        assert set(words) <= set(LISTOPS_VOCABULARY) and words[0] in OPERATORS
        assert depth_of(row["text"]) <= bounds.get("max_depth", 10) - 1
    assert len({row["text"] for row in rows}) == len(rows) == 400


def test_listops_of_the_arenas_length():
    rows = list(GENERATORS["listops"](30, seed=2))
    assert all(500 < len(row["text"].split()) < 2000 and depth_of(row["text"]) <= 9 for row in rows)
    assert [evaluate(row["text"]) for row in rows] == [row["label"] for row in rows]


def test_listops_follows_its_seed():
    bounds = {"min_length": 4, "max_length": 50}
    first = list(GENERATORS["listops"](50, seed=3, **bounds))
    assert list(GENERATORS["listops"](80, seed=3, **bounds))[:50] == first
    assert list(GENERATORS["listops"](50, seed=4, **bounds)) != first


def test_listops_draws_as_published():
    """Operators are a quarter of the nodes that may be one; all kinds and numbers of arguments come equally often."""
    rng = random.Random(0)
    expressions = [lra_generators._expression(rng, 10**9, 3, 5)[0] for _ in range(4000)]
    operators, digits, arguments, below = [], [], [], []
    for tokens in expressions:
        stack = []
        for token in tokens:
            if token == "]":
                arguments.append(stack.pop())
                continue
            if stack:
                stack[-1] += 1
            if len(stack) == 1:
                below.append(token in OPERATORS)
            if token in OPERATORS:
                operators.append(OPERATORS.index(token))
                stack.append(0)
            else:
                digits.append(int(token))
    assert np.mean(below) == pytest.approx(0.25, abs=0.02)
    assert np.bincount(operators) / len(operators) == pytest.approx([0.25] * 4, abs=0.02)
    assert np.bincount(arguments)[2:] / len(arguments) == pytest.approx([0.25] * 4, abs=0.02)
    assert np.bincount(digits) / len(digits) == pytest.approx([0.1] * 10, abs=0.01)


def test_listops_gives_all_there_are_and_no_more():
    # 4 operators of two digits each
    rows = list(GENERATORS["listops"](400, seed=0, min_length=3, max_length=5))
    assert len({row["text"] for row in rows}) == 400
    with pytest.raises(RecipeError, match=r"400 of 401 rows .*min_length=3 and max_length=5"):
        list(GENERATORS["listops"](401, seed=0, min_length=3, max_length=5))
    with pytest.raises(RecipeError, match="max_depth=1 and max_args=10"):
        list(GENERATORS["listops"](1, seed=0, max_depth=1))


def test_listops_tokenizer(tmp_path):
    tokenizer = listops_tokenizer()
    assert tokenizer.convert_ids_to_tokens(range(4)) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(tokenizer) == 4 + len(LISTOPS_VOCABULARY) == 19
    text = "[MAX 4 3 [SM 7 9 ] ]"
    batch = tokenizer([text, "[MIN 5 word ]"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == [*text.split(), "</s>"]
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][1])[:5] == ["[MIN", "5", "<unk>", "]", "</s>"]
    assert batch["input_ids"][1][5:] == [tokenizer.pad_token_id] * 4
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)(text) == tokenizer(text)


# texts


def test_imdb_folder(tmp_path):
    for label, name, text in (("pos", "0_9", "Good.\u2028Très."), ("neg", "0_1", "Bad."), ("unsup", "0_0", "?")):
        (tmp_path / label).mkdir()
        (tmp_path / label / f"{name}.txt").write_text(text, encoding="utf-8")
    assert rows_of("imdb", tmp_path) == [
        {"text": "Bad.", "label": "neg"},
        {"text": "Good.\u2028Très.", "label": "pos"},
    ]
    assert rows_of("imdb", tmp_path / "pos" / "0_9.txt") == [{"text": "Good.\u2028Très.", "label": "pos"}]
    fails("imdb", tmp_path / "unsup" / "0_0.txt", "unsup", "neg or pos")
    fails("imdb", tmp_path / "unsup", "no rows")
    (tmp_path / "neg" / "1_1.txt").write_bytes(b"fine\n\xff\n")
    fails("imdb", tmp_path, "1_1.txt", "line 2", "UTF-8")


def test_aan_file(tmp_path):
    path = tmp_path / "new_aan_pairs.eval.tsv"
    path.write_bytes('0.0\tA00-1\tB00-1\tone "text\x0b\u2028\ttwo\n1.0\tA00-2\tB00-2\tthree\tfour'.encode())
    assert rows_of("aan", path) == [
        {"text": 'one "text\x0b\u2028', "text_pair": "two", "label": 0},
        {"text": "three", "text_pair": "four", "label": 1},
    ]
    path.write_text("0.0\ta\tb\tone\ttwo\n1.0\ta\tb\tthree\n")
    fails("aan", path, path, "line 2", "5 columns", "got 4")
    path.write_text("2.0\ta\tb\tone\ttwo\n")
    fails("aan", path, path, "line 1", "'2.0'")


# pixels


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)


def grey_by_pillow(colours):
    images = [Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)) for row in colours]
    return [np.array(image.convert("L")).ravel() for image in images]


def grey_by_tensorflow(colours):
    """What tf.image.rgb_to_grayscale does: weights in float32, then scaled by 255.5 and cut off."""
    channels = colours.reshape(-1, 3, 1024).astype(np.float32) / np.float32(255)
    return np.floor(np.tensordot(channels, np.float32([0.2989, 0.587, 0.114]), (1, 0)) * np.float32(255.5)).astype(int)


def test_cifar10_binary(tmp_path, colours):
    path = tmp_path / "data_batch_1.bin"
    labels = np.array([[3], [0], [9]], np.uint8)
    path.write_bytes(np.hstack([labels, colours]).tobytes())
    rows = rows_of("cifar10", path)
    assert [row["label"] for row in rows] == [3, 0, 9]
    assert all(row["values"].dtype == np.uint8 for row in rows)
    np.testing.assert_array_equal([row["values"] for row in rows], grey_by_pillow(colours))
    difference = np.array([row["values"] for row in rows], int) - grey_by_tensorflow(colours)
    assert np.abs(difference).max() <= 1
    path.write_bytes(path.read_bytes()[:-1])
    fails("cifar10", path, path, "CIFAR-10")
    path.write_bytes(np.hstack([np.array([[3], [10], [9]], np.uint8), colours]).tobytes())
    fails("cifar10", path, path, "row 2", "10")


class PicklerOfPython2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in CIFAR-10's Python version."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value):
        data = value.encode() if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


@pytest.mark.parametrize("pickler", [PicklerOfPython2, pickle.Pickler])
def test_cifar10_python_version(tmp_path, colours, pickler):
    path = tmp_path / "data_batch_1"
    with path.open("wb") as file:
        batch = {b"batch_label": b"1 of 5", b"labels": [3, 0, 9], b"data": colours, b"filenames": [b"a.png"] * 3}
        pickler(file, protocol=2 if pickler is PicklerOfPython2 else 4).dump(batch)
    rows = rows_of("cifar10", path)
    assert [row["label"] for row in rows] == [3, 0, 9]
    np.testing.assert_array_equal([row["values"] for row in rows], grey_by_pillow(colours))


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_cifar10_refuses_code(tmp_path, colours):
    target, path = tmp_path / "written", tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"labels": [1, 2, 3], b"data": colours, b"x": Malicious(target)}, protocol=4))
    fails("cifar10", path, path, "io.open")
    assert not target.exists()
    for code in (b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR."):
        path.write_bytes(code)
        fails("cifar10", path, path, "which is not an array")


@pytest.mark.parametrize("batch", [[1], {}, {b"labels": [1], b"data": [1]}, {b"labels": [1, 2]}])
def test_cifar10_pickles_of_other_things(tmp_path, batch):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, protocol=4))
    fails("cifar10", path, path, "CIFAR-10")
    path.write_bytes(b"no pickle")
    fails("cifar10", path, path, "CIFAR-10")


@pytest.fixture
def drawings(tmp_path):
    """A folder as of pathfinder32, with three images, and their pixels."""
    folder = tmp_path / "pathfinder32" / "curv_contour_length_14"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    (folder / "metadata").mkdir(parents=True)
    for batch, names in ((2, ["sample_0.png", "sample_1.png"]), (10, ["sample_0.png"])):
        (folder / "imgs" / str(batch)).mkdir(parents=True)
        lines = [f"imgs/{batch} {name} {n} {(n + 1) % 2} 1.8 6 2.0 5 1.5 2 1\n" for n, name in enumerate(names)]
        (folder / "metadata" / f"{batch}.npy").write_text("".join(lines))
        for n, name in enumerate(names):
            Image.fromarray(pixels[n if batch == 2 else 2]).save(folder / "imgs" / str(batch) / name)
    return folder, pixels.reshape(3, 1024)


def test_pathfinder_folder(drawings):
    folder, pixels = drawings
    rows = rows_of("pathfinder", folder)
    assert [row["label"] for row in rows] == [1, 0, 1]
    np.testing.assert_array_equal([row["values"] for row in rows], pixels)
    assert rows[0]["values"].dtype == np.uint8
    one = rows_of("pathfinder", folder / "metadata" / "10.npy")
    assert len(one) == 1
    np.testing.assert_array_equal(one[0]["values"], pixels[2])


def test_pathfinder_errors_name_file_and_line(drawings):
    folder, _ = drawings
    metadata = folder / "metadata" / "2.npy"
    (folder / "imgs" / "2" / "sample_1.png").write_bytes(b"")
    fails("pathfinder", folder, metadata, "line 2", "sample_1.png")
    metadata.write_text("imgs/2 sample_0.png 0 1\nimgs/2 sample_9.png 0 1\n")
    fails("pathfinder", folder, metadata, "line 2", "sample_9.png")
    metadata.write_text("imgs/2 sample_0.png 0 yes\n")
    fails("pathfinder", folder, metadata, "line 1", "yes")
    np.save(metadata, np.arange(3))
    fails("pathfinder", folder, metadata, "line 1")
    fails("pathfinder", folder / "imgs", "no rows")


def test_pathfinder_skips_the_empty_image(drawings):
    folder, pixels = drawings
    easy = folder.parent / "curv_baseline"
    (easy / "metadata").mkdir(parents=True)
    (easy / "imgs" / "0").mkdir(parents=True)
    (easy / "imgs" / "0" / "sample_172.png").write_bytes(b"")
    Image.fromarray(pixels[0].reshape(32, 32)).save(easy / "imgs" / "0" / "sample_173.png")
    (easy / "metadata" / "0.npy").write_text("imgs/0 sample_172.png 172 1\nimgs/0 sample_173.png 173 0\n")
    assert [row["label"] for row in rows_of("pathfinder", easy)] == [0]


def idx(values):
    return (
        struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


@pytest.mark.parametrize("suffixes", [("", ""), (".gz", ".gz"), (".gz", ""), ("", ".gz")])
def test_idx_files(tmp_path, suffixes):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    for name, values, suffix in zip(names, (pixels, np.array([7, 2], np.uint8)), suffixes):
        data = idx(values)
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    rows = rows_of("idx", tmp_path / (names[0] + suffixes[0]))
    assert [row["label"] for row in rows] == [7, 2]
    np.testing.assert_array_equal([row["values"] for row in rows], pixels.reshape(2, 784))


def test_idx_errors(tmp_path):
    images, labels = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    images.write_bytes(idx(np.zeros((2, 28, 28), np.uint8)))
    fails("idx", images, "t10k-labels-idx1-ubyte")
    labels.write_bytes(idx(np.zeros(3, np.uint8)))
    fails("idx", images, images, "2 images", "3 labels")
    labels.write_bytes(idx(np.zeros((2, 1), np.uint8)))
    fails("idx", images, labels, "1 dimensions")
    images.write_bytes(images.read_bytes()[:-1])
    fails("idx", images, images, "cut off")
    fails("idx", labels, labels, "its name must contain images")
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(bytes(1000))[:-9])
    fails("idx", packed, packed)


# sound


def write_wav(path, samples, channels=1):
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())


def test_wav_folder(tmp_path):
    write_wav(tmp_path / "yes" / "a.wav", np.array([0, 16384, -32768, 32767], "<i2"))
    write_wav(tmp_path / "no" / "b.wav", np.array([128, 0, 255], np.uint8))
    write_wav(tmp_path / "no" / "c.wav", np.array([-(2**31), 2**30], "<i4"))
    write_wav(tmp_path / "_background_noise_" / "d.wav", np.array([1], "<i2"))
    rows = rows_of("wav", tmp_path)
    assert [row["label"] for row in rows] == ["no", "no", "yes"]
    for row, expected in zip(rows, ([0, -1, 127 / 128], [-1, 0.5], [0, 0.5, -1, 32767 / 32768])):
        assert row["values"].dtype == np.float32
        np.testing.assert_allclose(row["values"], expected)
    for path in (tmp_path / "yes", tmp_path / "yes" / "a.wav"):
        assert [row["label"] for row in rows_of("wav", path)] == ["yes"]


def test_wav_errors(tmp_path):
    path = tmp_path / "yes" / "a.wav"
    write_wav(path, np.zeros(4, "<i2"), channels=2)
    fails("wav", tmp_path, path, "mono")
    write_wav(path, np.zeros(0, "<i2"))
    fails("wav", tmp_path, path, "empty")
    path.write_bytes(b"RIFF and no more")
    fails("wav", tmp_path, path, "PCM")
    path.unlink()
    fails("wav", tmp_path, "no rows")


@pytest.mark.parametrize("reader", READERS)
def test_missing_files(tmp_path, reader):
    # the readers that look at the name or folder of a file find it right
    path = tmp_path / "pos" / "missing-images.bin"
    fails(reader, path, path)


# stand-ins


@pytest.mark.parametrize(("name", "classes"), [("pathfinder", 2), ("images", 10)])
def test_stand_ins(name, classes):
    rows = list(GENERATORS[name](300, seed=0))
    assert {row["label"] for row in rows} == set(range(classes))
    assert all(row["values"].dtype == np.uint8 and row["values"].shape == (1024,) for row in rows)
    assert len({row["values"].tobytes() for row in rows}) == 300
    again = list(GENERATORS[name](20, seed=0))
    np.testing.assert_array_equal([row["values"] for row in again], [row["values"] for row in rows[:20]])
    assert next(GENERATORS[name](1, seed=1))["values"].tobytes() != rows[0]["values"].tobytes()
    assert next(GENERATORS[name](1, seed=0, size=48))["values"].shape == (48 * 48,)


def connected(pixels):
    """Whether the dots of a drawing are joined by dashes, which are at most two pixels apart along a line."""
    image = pixels.reshape(32, 32)
    dots = [tuple(at) for at in np.argwhere(image == 255)]
    reached, border = {dots[0]}, [dots[0]]
    while border:
        y, x = border.pop()
        near = {(y + dy, x + dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)}
        for at in near - reached:
            if min(at) >= 0 and max(at) < 32 and image[at]:
                reached.add(at)
                border.append(at)
    return set(dots) <= reached


def test_pathfinder_stand_in_shows_its_label():
    rows = list(GENERATORS["pathfinder"](200, seed=5))
    assert [connected(row["values"]) for row in rows] == [bool(row["label"]) for row in rows]
    labels = np.array([row["label"] for row in rows])
    assert 60 < labels.sum() < 140
    # how far apart the dots are must not tell
    dots = [np.argwhere(row["values"].reshape(32, 32) == 255) for row in rows]
    spread = np.array([np.linalg.norm(at[-9:].mean(0) - at[:9].mean(0)) for at in dots])
    assert spread[labels == 1].mean() == pytest.approx(spread[labels == 0].mean(), abs=1)
    with pytest.raises(RecipeError, match="size=16"):
        next(GENERATORS["pathfinder"](1, seed=0, size=16))


def test_images_stand_in_can_be_learnt():
    """The direction of a spectrum's peak tells the class."""
    right = 0
    rows = list(GENERATORS["images"](100, seed=0))
    for row in rows:
        image = row["values"].reshape(32, 32) - row["values"].mean()
        spectrum = np.abs(np.fft.fft2(image, (256, 256)))
        y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
        y, x = (at - 256 if at > 128 else at for at in (y, x))
        right += round(np.arctan2(y, x) / np.pi * 10) % 10 == row["label"]
    assert right >= 90


# recipes: name -> task's classes, entries of its vocabulary and parameters by hand from the authors' shapes
def parameters(layers, d, h, z, positions, norm, embedding, head_width, head, classes):
    """What the authors' model has: per layer EMA, attention, biases and feed-forward; then embeddings and head."""
    ema = 3 * 2 * d * 16 + 2 * d * 16 + d
    attention = (d + 1) * h + (d + 1) * (2 * d + z + h) + (h + 1) * d + 4 * z + 2 * positions - 1
    feed_forward = (d + 1) * h + (h + 1) * d
    return layers * (ema + attention + feed_forward + 2 * norm) + embedding + (head_width + 1) * head + head * classes


BYTES = 260
MODELS = {
    "listops": (10, 19, parameters(6, 80, 160, 64, 2002, 160, 19 * 80, 80, 160, 10)),
    "text": (2, BYTES, parameters(4, 128, 256, 64, 4002, 1, BYTES * 128, 128, 256, 2)),
    "retrieval": (2, BYTES, parameters(6, 128, 256, 64, 4002, 1, BYTES * 128, 256, 256, 2)),
    "image": (10, None, parameters(8, 160, 320, 96, 1024, 320, 320 + 320, 160, 320, 10)),
    "pathfinder": (2, None, parameters(6, 128, 256, 64, 1024, 256, 256 + 256, 128, 256, 2)),
    "path-x": (2, None, parameters(4, 64, 128, 32, 16384, 128, 128 + 128, 64, 128, 2)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [None, 128])
def test_models_of_the_recipes(name, chunk):
    recipe = yaml.safe_load((RECIPES / "lra" / f"{name}.yaml").read_text())
    classes, vocabulary, expected = MODELS[name]
    fields = dict(recipe["model"], num_labels=classes)
    if vocabulary:
        fields["vocab_size"] = vocabulary
    if chunk:
        expected -= 2 * fields["num_hidden_layers"] * (fields["max_positions"] - chunk)
        fields |= {"use_chunking": True, "chunk_size": chunk, "max_positions": chunk}
    kind = MegaForSequencePairClassification if name == "retrieval" else MegaForSequenceClassification
    model = kind(MegaConfig(**fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert recipe["name"] == f"lra-{name}" and recipe["task"] == "sequence-classification"
    assert recipe["data"][0]["reader"] in READERS
    assert recipe["sequence_length"] == recipe["model"]["max_positions"]
    assert (recipe["input"] == "values") == (recipe["model"].get("input_type") == "values") == ("normalize" in recipe)
