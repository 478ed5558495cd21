"""A stream gives the same blocks however it is interrupted, sharded or skipped, and leaves out what judges it."""

import gzip
import json
import re
from itertools import chain, islice

import datasets
import numpy as np
import pytest

from pipeline.data import check, loading, streaming
from pipeline.data.arguments import DataArguments
from pipeline.data.sources import Source
from pipeline.data.streaming import DocumentStream, PackedStream, load_documents, pack_stream
from pipeline.runtime.errors import UserError
from tests.data.test_packing import make_tokenizer

LENGTH = 6


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def numbered(start, count):
    """Documents of three to five words that begin with their own number, so that each is different."""
    return [" ".join(f"w{digit}" for digit in f"{n:03d}" + "9" * (n % 3)) for n in range(start, start + count)]


@pytest.fixture
def corpus(tmp_path):
    """120 documents in three files."""
    for number in range(3):
        rows = numbered(40 * number, 40)
        (tmp_path / f"train-{number}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return tmp_path


def stream_of(folder, tokenizer, seed=0, window=16, **options):
    return PackedStream(
        DocumentStream([Source(name=str(folder))], seed, window=window, **options), tokenizer, max_length=LENGTH
    )


def ids(blocks):
    return [block["input_ids"].tolist() for block in blocks]


def watch_reading(monkeypatch):
    """A list that fills with every document that is tokenized from here on."""
    read, encode = [], streaming.encode_documents

    def encode_and_note(tokenizer, texts):
        read.extend(texts)
        return encode(tokenizer, texts)

    monkeypatch.setattr(streaming, "encode_documents", encode_and_note)
    return read


def documents_in(stream, windows):
    place = stream.start()
    return [texts for texts, _ in islice(stream.windows(place), windows)]


def test_a_pass_holds_every_document_once_in_a_seeded_order(corpus):
    """Windows of 24 divide 120: five windows are a pass."""

    def two_passes(seed):
        windows = documents_in(DocumentStream([Source(name=str(corpus))], seed, window=24), 10)
        return list(chain(*windows[:5])), list(chain(*windows[5:]))

    first, second = two_passes(0)
    assert sorted(first) == sorted(second) == sorted(numbered(0, 120))
    assert first != second
    assert two_passes(0) == (first, second)
    assert two_passes(1)[0] != first


@pytest.mark.parametrize("seen", [0, 1, 5, 40, 77, 200])
def test_blocks_go_on_exactly_after_a_fast_forward(corpus, tokenizer, seen, monkeypatch):
    """A pass is 120 documents of 5 to 7 tokens, 120 blocks: 200 lies in the second pass. The reader may have run
    ahead of what was learned (here by 9 blocks). What is tokenized again is one window of 16 documents, and then what
    the 30 blocks take, at most 6 documents of 5 tokens to every 5 blocks, rounded up to windows."""
    whole = ids(islice(stream_of(corpus, tokenizer), 240))
    stream = stream_of(corpus, tokenizer)
    list(islice(stream, seen + 9))
    position = json.loads(json.dumps(stream.position(seen)))
    again = stream_of(corpus, tokenizer)
    again.fast_forward(position)
    read = watch_reading(monkeypatch)
    blocks = ids(islice(again, seen + 30))
    assert blocks[:seen] == [[0] * LENGTH] * seen
    assert blocks[seen:] == whole[seen : seen + 30]
    assert len(read) <= 16 + 30 * LENGTH // 5 + 16


def test_a_position_is_unknown_before_reading_and_for_another_stream(corpus, tokenizer):
    stream = stream_of(corpus, tokenizer)
    assert stream.position(3) is None
    assert stream.fingerprint == stream_of(corpus, tokenizer).fingerprint
    others = [stream_of(corpus, tokenizer, seed=1), stream_of(corpus, tokenizer, window=17)]
    others.append(stream_of(corpus, tokenizer, held_out=frozenset([b"x" * 32])))
    assert len({stream.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("kind", ["txt", "parquet", "world", "hub"])
def test_every_source_goes_on_exactly(tmp_path, kind, monkeypatch):
    name = str(tmp_path)
    if kind == "txt":
        (tmp_path / "a.txt").write_text("\n\n".join(row * 300 for row in numbered(0, 60)))
    elif kind == "parquet":
        datasets.Dataset.from_dict({"text": numbered(0, 60)}).to_parquet(tmp_path / "a.parquet", batch_size=7)
    elif kind == "world":
        name = "world/corpus"
        monkeypatch.setattr(
            streaming, "raw_rows", lambda source: (("world", n, {"text": t}) for n, t in enumerate(numbered(0, 60)))
        )
    else:
        name = "some/corpus"
        monkeypatch.setattr(
            streaming,
            "load_hub",
            lambda source, streaming: datasets.Dataset.from_dict({"text": numbered(0, 60)}).to_iterable_dataset(),
        )

    def windows(place, count):
        stream = DocumentStream([Source(name=name)], 0, window=7)
        return list(islice(stream.windows(json.loads(json.dumps(place or stream.start()))), count))

    whole = windows(None, 20)
    if kind != "txt":
        assert set(chain(*(texts for texts, _ in whole[:9]))) == set(numbered(0, 60))
    for place in (0, 3, 8, 12):
        assert windows(whole[place][1], 4) == whole[place + 1 : place + 5]


def test_processes_share_blocks_without_overlap(corpus, tokenizer):
    """As accelerate deals an iterable dataset out to two processes, batches of 2: 0 and 1 to the first, 2 and 3 to the
    second, and so on."""
    from accelerate.data_loader import IterableDatasetShard

    whole = ids(islice(stream_of(corpus, tokenizer), 40))
    shares = [
        ids(islice(IterableDatasetShard(stream_of(corpus, tokenizer), 2, num_processes=2, process_index=process), 20))
        for process in (0, 1)
    ]
    assert shares[0] == [whole[i] for i in range(40) if i % 4 < 2]
    assert shares[1] == [whole[i] for i in range(40) if i % 4 >= 2]


def test_workers_share_documents_without_overlap(corpus, tokenizer, monkeypatch):
    """Two workers take every second window of 12: between them the ten windows of the first pass, each once."""

    class Worker:
        num_workers = 2

        def __init__(self, number):
            self.id = number

    taken = []
    for number in (0, 1):
        seen = []
        monkeypatch.setattr(streaming, "get_worker_info", lambda number=number: Worker(number))
        monkeypatch.setattr(
            streaming,
            "encode_documents",
            lambda tokenizer, texts, seen=seen: seen.append(texts) or [[1] * LENGTH] * len(texts),
        )
        list(islice(stream_of(corpus, tokenizer, window=12), 60))
        taken.append([text for texts in seen for text in texts if text])  # "" is the tokenizer's own trial
    assert len(taken[0]) == len(taken[1]) == 60
    assert sorted(taken[0] + taken[1]) == sorted(numbered(0, 120))


def test_mixture_by_weight(tmp_path):
    """Weights 3 and 1 in windows of 20: 15 and 5 documents of each window; the small corpus comes round again."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("".join(json.dumps({"text": f"one {n}"}) + "\n" for n in range(45)))
    two.write_text("".join(json.dumps({"text": f"two {n}"}) + "\n" for n in range(6)))
    sources = [Source(name=str(one), weight=3.0), Source(name=str(two), weight=1.0)]
    windows = documents_in(DocumentStream(sources, 0, window=20), 3)
    assert [sum(text.startswith("one") for text in window) for window in windows] == [15, 15, 15]
    two_texts = [text for window in windows for text in window if text.startswith("two")]
    assert len(two_texts) == 15
    assert len(set(two_texts)) == 6
    with pytest.raises(UserError, match="needs a weight on every entry"):
        DocumentStream([Source(name=str(one)), Source(name=str(two))], 0)


def test_evaluation_documents_are_not_in_the_stream(corpus):
    """Six documents are held out, two of each file; a copy of one further on in the corpus is left out as well."""
    with open(corpus / "train-2.jsonl", "a") as file:
        file.write(json.dumps({"text": numbered(0, 1)[0]}) + "\n")
    data = load_documents(DataArguments(dataset_name=str(corpus), dataset_streaming=True, eval_rows=6), 0)
    held = data.evaluation["text"][:]
    assert held == numbered(0, 2) + numbered(40, 2) + numbered(80, 2)
    data.train.counts = [114]
    (texts,) = documents_in(data.train, 1)
    assert sorted(texts) == sorted(set(numbered(0, 120)) - set(held))
    assert [(s["role"], s["rows"]) for s in data.sources] == [("train", None), ("evaluation", 6)]
    assert len(data.sources[0]["fingerprint"]) == 64
    named = load_documents(
        DataArguments(
            dataset_name=str(corpus / "train-0.jsonl"),
            eval_dataset_name=str(corpus / "train-1.jsonl"),
            dataset_streaming=True,
        ),
        0,
    )
    assert len(named.evaluation) == 40


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b'text\nw1\n"w2\nw3\n', r"a\.csv, row 2, which begins at line 3: a quote opens a cell"),
        ("a.csv", b"text\nw1\nw2,w3\n", r"a\.csv, row 2: cells: 2, columns in the header: 1"),
        ("a.json", b'[{"text": "w1"}, {"text": "\\ud800"}]', r"a\.json, row 2: half a surrogate pair"),
        ("a.json", b'[{"text": "w1"}, {"text":' + b"[" * 9999, r"a\.json, row 2: JSON nested too deeply"),
        ("a.jsonl", b'{"text": "w1"}\n{"text": "w', r"a\.jsonl, row 2: not valid JSON.*is it cut"),
        ("a.jsonl.gz", b'{"text": "w1"}\n', r"a\.jsonl\.gz is not a gzip file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "w1"}\n' * 9, mtime=0)[:-9],
            r"a\.jsonl\.gz is a cut or damaged gzip file",
        ),
        ("a.txt", "w1\n".encode("utf-16"), r"a\.txt is in UTF-16"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error_in_every_way_to_read_it(tmp_path, capsys, name, data, message):
    """`load_documents` is what the stage calls; a stream meets the fault when it comes to it; the check only counts
    bad rows, unless the rest of the file is unreadable."""
    (tmp_path / name).write_bytes(data)
    for streaming_on in (False, True):
        arguments = DataArguments(dataset_name=str(tmp_path / name), dataset_streaming=streaming_on, eval_rows=0)
        with pytest.raises(UserError, match=message) as error:
            list(load_documents(arguments, 0).train.texts())
        assert "\n" not in str(error.value)
    try:
        check.main([str(tmp_path / name), "--kind", "text"])
    except UserError as error:
        assert re.search(message, str(error))  # noqa: PT017 - bad rows are printed instead
    else:
        assert re.search("bad row      .*" + message, capsys.readouterr().out)


def test_what_cannot_be_streamed(corpus, tmp_path):
    def first_window(**arguments):
        data = load_documents(DataArguments(dataset_streaming=True, eval_rows=0, **arguments), 0)
        return documents_in(data.train, 1)

    with pytest.raises(UserError, match="a stream takes a complete split"):
        first_window(dataset_name=str(corpus), dataset_train_split="train[:10]")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "good"}\n{"text": ""}\n')
    with pytest.raises(UserError, match=r"bad.jsonl, row 2: text: is empty \(fix"):
        first_window(dataset_name=str(bad))
    data = load_documents(
        DataArguments(dataset_name=str(bad), dataset_streaming=True, eval_rows=0, skip_bad_rows=True), 0
    )
    data.train.counts = [3]
    assert documents_in(data.train, 1) == [["good"] * 3]
    assert data.sources[0]["bad_rows"] == 1  # one bad row, which came by twice
    nothing_left = DocumentStream(
        [Source(name=str(bad))], 0, skip_bad_rows=True, held_out=frozenset([streaming._key({"text": "good"})])
    )
    with pytest.raises(UserError, match="no document is left"):
        documents_in(nothing_left, 1)


def test_a_stream_needs_an_end(corpus, tokenizer):
    with pytest.raises(UserError, match="by max_steps"):
        pack_stream(DocumentStream([Source(name=str(corpus))], 0), tokenizer, LENGTH, 0)


def test_texts_for_a_tokenizer_are_one_pass(corpus):
    """Windows of 50: the third one holds the last 20 documents and is the one in which the second pass begins."""
    texts = list(DocumentStream([Source(name=str(corpus))], 0, window=50).texts())
    assert len(texts) == 150
    assert set(texts) == set(numbered(0, 120))


def test_blocks_are_arrays_of_the_packed_columns(corpus, tokenizer):
    block = next(iter(stream_of(corpus, tokenizer)))
    assert set(block) == {"input_ids", "labels", "position_ids"}
    assert all(value.dtype == np.int64 and value.shape == (LENGTH,) for value in block.values())
    assert loading.EVAL_ROWS == 500
