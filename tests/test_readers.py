"""data/readers: every format becomes lines, and every file of a folder is accounted for."""

import bz2
import datetime
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
import zstandard
from pyarrow import parquet

from nemo_chameleon.data.readers import (
    DataFile,
    MalformedError,
    find_files,
    read_lines,
    text_at,
)
from nemo_chameleon.utils.errors import UserError
from project import read_documents

TEXTS = [f"document {number}, 猫 \u2028 and é" for number in range(700)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
HALF = LINES.index(b"\n", len(LINES) // 2) + 1
# A frame that a reader must skip, as pzstd writes it before each frame of data.
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00\x01\x02\x03\x04"


def zstd(contents: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(contents)


def table(texts: list[str]) -> Any:
    return arrow.table({"n": range(len(texts)), "text": texts})


def arrow_stream(path: Path, texts: list[str]) -> None:
    """Write what save_to_disk of `datasets` writes."""
    with arrow.ipc.new_stream(str(path), table(texts).schema) as writer:
        writer.write_table(table(texts), max_chunksize=100)


def arrow_file(path: Path) -> None:
    with arrow.ipc.new_file(str(path), table(TEXTS).schema) as writer:
        writer.write_table(table(TEXTS), max_chunksize=100)


def bytes_of(contents: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(contents)


def stream() -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table(TEXTS).schema) as writer:
        writer.write_table(table(TEXTS), max_chunksize=100)
    return bytes(sink.getvalue())


STREAM = stream()

FORMATS: dict[str, Callable[[Path], Any]] = {
    "lines": bytes_of(LINES),
    "joined": bytes_of(LINES[:HALF] + b"\xef\xbb\xbf" + LINES[HALF:]),
    "windows": bytes_of(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
    "gzip": bytes_of(gzip.compress(LINES[:HALF]) + gzip.compress(LINES[HALF:])),
    "zstd": bytes_of(zstd(LINES[:HALF]) + zstd(LINES[HALF:])),
    "pzstd": bytes_of(SKIPPED + zstd(LINES[:HALF]) + SKIPPED + zstd(LINES[HALF:])),
    "bzip2": bytes_of(bz2.compress(LINES)),
    "xz": bytes_of(lzma.compress(LINES)),
    "array": bytes_of(json.dumps([{"text": text} for text in TEXTS]).encode()),
    "indented": bytes_of(
        b"\xef\xbb\xbf" + json.dumps([{"text": t} for t in TEXTS], indent=2).encode() + b"\n"
    ),
    "compressed array": bytes_of(gzip.compress(json.dumps([{"text": t} for t in TEXTS]).encode())),
    "parquet": lambda path: parquet.write_table(table(TEXTS), path, row_group_size=300),
    "arrow stream": lambda path: arrow_stream(path, TEXTS),
    "arrow file": arrow_file,
}


def write(folder: Path, name: str, contents: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(contents)


def files_of(*paths: str) -> list[DataFile]:
    """Return the files that are read of paths."""
    return [file for source in find_files(paths) for file in source.files]


def texts_of(*paths: str, key: str = "text") -> list[str]:
    """Return the documents of paths."""
    return [text_at(line.text, key) for line in read_lines(files_of(*paths), key=key)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_told_by_its_contents(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gives its documents whatever its name is, and all its bytes count as read."""
    monkeypatch.setattr("nemo_chameleon.data.readers.reading._CHARACTERS", 1000)
    path = tmp_path / "data"
    FORMATS[form](path)
    assert list(read_documents([path])) == TEXTS
    found, read = files_of(str(path)), list[int]()
    lines = list(read_lines(found, read.append))
    assert [text_at(line.text, "text") for line in lines] == TEXTS
    assert sum(read) == path.stat().st_size
    middle = lines[350]
    rest = read_lines(found, after=(middle.file, middle.number), key="text")
    assert [text_at(line.text, "text") for line in rest] == TEXTS[351:]


def test_lines_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    """Fingerprints of domains are digests of these bytes, so nothing may write them anew."""
    (tmp_path / "a.jsonl").write_bytes(b'{ "text":"a" }\r\n\n{"text": "b"}')
    lines = read_lines(files_of(str(tmp_path)))
    assert [line.text for line in lines] == [b'{ "text":"a" }\r\n', b'{"text": "b"}']


def test_pipes(tmp_path: Path) -> None:
    """A pipe and the standard input are read once, and may be compressed."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_bytes(gzip.compress(LINES)), daemon=True
    )
    writer.start()
    assert list(read_documents([tmp_path / "pipe"])) == TEXTS
    (tmp_path / "file").write_bytes(LINES)
    before = os.dup(0)
    try:
        with (tmp_path / "file").open("rb") as stream:
            os.dup2(stream.fileno(), 0)
        assert list(read_documents(["-"])) == TEXTS
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_keys_with_dots(tmp_path: Path) -> None:
    """Dots lead into objects, unless a key has them itself; a plain text has any key."""
    line = b'{"a": {"b": "inner", "c": 1}, "a.c": "own"}'
    assert text_at(line, "a.b") == "inner"
    assert text_at(line, "a.c") == "own"
    for key in ("a.d", "a.b.c", "x"):
        with pytest.raises(ValueError, match=f"no key '{key}'; its keys are 'a', 'a.c': .* --key"):
            text_at(line, key)
    with pytest.raises(ValueError, match="'a' is null: leave such lines out"):
        text_at(b'{"a": null}', "a")
    nested = arrow.table({"n": [1], "a": [{"b": "inner"}]})
    parquet.write_table(nested, tmp_path / "x.parquet")
    (tmp_path / "y.txt").write_text("plain")
    paths = [tmp_path / "x.parquet", tmp_path / "y.txt"]
    assert list(read_documents(paths, "a.b")) == ["inner", "plain"]
    with pytest.raises(UserError, match=r"x\.parquet, row 1: the JSON object has no key 'text'"):
        list(read_documents(paths))


FAULTS = {
    "cut.gz": (gzip.compress(LINES)[:-9], "cannot read .*end"),
    "cut.zst": (zstd(LINES)[:-9], "cannot read .*ends in the middle"),
    "cut.xz": (lzma.compress(LINES)[:-9], "cannot read .*end"),
    "wrong.zst": (zstd(LINES)[:9] + b"\xff" * 200, "cannot read .*damaged"),
    "cut.parquet": (b"PAR1" + b"\0" * 99, "cannot read .*damaged"),
    "cut.arrow": (b"\xff\xff\xff\xff\x10\0\0\0" + b"\0" * 9, "cannot read .*damaged"),
    "batch.arrow": (STREAM[: STREAM.rindex(b"\xff\xff\xff\xff")], "cannot read .*in the middle"),
    "cut.json": (b'[{"text": "a"}, {"text": "b', "record 2: .*ends in the middle"),
    "open.json": (b'[{"text": "a"}', "ends in the middle, after record 1"),
    "comma.json": (b'[{"text": "a"} {"text": "b"}]', "record 2: not JSON"),
    "two.json": (b'[{"text": "a"}] [{"text": "b"}]', "more after the end of its JSON array"),
    "numbers.json": (b"[1, 2]", "record 1: not a JSON object"),
    "deep.json": (b'[{"text": ' + b"[" * 100_000, "record 1: .*nested too deep"),
    "wide.jsonl": ('{"text": "a"}'.encode("utf-16"), "UTF-16"),
    "latin.txt": ("café".encode("latin-1"), "not valid UTF-8 at byte 3"),
    "a.csv": (b"text\na\n", "a table of text"),
    "data.json": (json.dumps({"data": [{"text": "a"}]}, indent=1).encode(), "jq -c '.data"),
    "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "a.zip": (b"PK\x03\x04..\xff", "a zip archive: unpack"),
    "a.xlsx": (b"PK\x03\x04..\xff", "a workbook of Excel: save its text"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0", "is an image"),
    "a.bin": (b"abc\0\1\2\3\xff", "is not text"),
    "a.txt": (b"abc\1\2\3\xff", "is not text"),
    "a.jsonl.lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "compressed with lz4.* lz4 -d"),
    "a.pdf": (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "a PDF file: .* pdftotext"),
    "twice.gz": (gzip.compress(gzip.compress(LINES)), "compressed twice"),
    "tar.gz": (gzip.compress(b"a".ljust(257, b"\0") + b"ustar\0"), "a tar archive"),
    "u32.txt": (
        "\ufeffab".encode("utf-32-le"),
        r"UTF-32, .* iconv -f UTF-32 .*u32\.txt > .*u32\.utf8\.txt and leave u32\.txt out",
    ),
    "u16.jsonl": ('{"text": "é"}'.encode("utf-16-be"), "UTF-16BE, not UTF-8: .* -f UTF-16BE"),
    "a.jsonl": (b"oops\n" + LINES, "line 1: not JSON"),
    "quotes.jsonl": (b"{'text': 'a'}", "not JSON: names and texts stand in double quotes"),
    "digits.jsonl": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "a number has too many digits"),
    "digits.json": (b'[{"text": "a", "n": ' + b"9" * 5000 + b"}]", "a number has too many digits"),
    "b.jsonl": (b"[]\n" + LINES, "line 1: not a JSON object"),
}


MENDED = {
    b'{"text": "a"},\n{"text": "b"},\n': "a comma follows",
    b'{"text": "a"}{"text": "b"}\n': "another object follows on the same line",
    b'{"text": "a"}\r{"text": "b"}\r': "lines end in .r alone",
    b'{"version": "1", "data": [{"text": "a"}, {"text": "b"}]}\n': "no key 'text'; its keys",
    b'{"a b": [{"text": "a"}, {"text": "b"}]}\n': "if the records are in its list",
    b'{"text": ["a", "b"]}\n': "'text' is a list, not text",
}


@pytest.mark.parametrize("contents", MENDED)
def test_records_that_a_command_mends(contents: bytes, tmp_path: Path) -> None:
    """What is wrong with all lines of a file is said with a command that works as it is."""
    (tmp_path / "a.jsonl").write_bytes(contents)
    with pytest.raises(UserError, match=rf"a\.jsonl, line 1: .*{MENDED[contents]}") as caught:
        texts_of_lines(tmp_path / "a.jsonl")
    command = re.search(r"(sed|tr|jq) .* > NEW", str(caught.value))
    assert command, str(caught.value)
    if shutil.which(command[1]):
        names = {"FILE": "a.jsonl", "NEW": "b.jsonl"}
        typed = re.sub("FILE|NEW", lambda name: str(tmp_path / names[name[0]]), command[0])
        subprocess.run(typed, shell=True, check=True)
        assert texts_of_lines(tmp_path / "b.jsonl") == ["a", "b"]


def texts_of_lines(path: Path) -> list[str]:
    return list(read_documents([path]))


def test_a_text_that_stands_twice() -> None:
    """Of two values of one key none is dropped in silence; other keys do not matter here."""
    for line, key in (
        (b'{"text": "secret answer", "text": "b"}', "text"),
        (b'{"text": "a", "te\\u0078t": "b"}', "text"),
        (b'{"a": {"b": "x"}, "a": {"b": "y"}}', "a.b"),
        (b'{"a": {"b": "x", "b": "y"}}', "a.b"),
    ):
        with pytest.raises(MalformedError, match=r"duplicate key '(text|a|b)', so that one of two"):
            text_at(line, key)
    assert text_at(b'{"text": "a", "n": 1, "n": 2, "m": {"text": 1, "text": 2}}', "text") == "a"


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    """A damaged file, or one of a format that is not known, is an error that names it."""
    contents, fault = FAULTS[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=fault) as caught:
        list(read_documents([tmp_path / name]))
    assert name in str(caught.value)


def test_a_text_that_begins_like_a_binary_file(tmp_path: Path) -> None:
    """The letters of a signature are text where nothing else is binary, also if a character is cut.

    The head of a file ends within one here.
    """
    text = "ORC and LZIP are formats. " + "é" * 4000
    (tmp_path / "a.txt").write_text(text)
    assert list(read_documents([tmp_path / "a.txt"])) == [text]


OF_PIPES = {
    b"PAR1\0": "parquet, which cannot be read of a pipe",
    STREAM[:50]: "arrow, which cannot be read of a pipe",
    b'[\n{"text": "a"}]': r"a JSON array, .* jq -c '\.\[\]'",
    b"text,id\n": "not JSONL, as it begins with 'text,id",
    gzip.compress(b"prose", mtime=0): "not JSONL, as it begins with 'prose'",
    b'{\n "text": "a"}': r"over several lines, .* jq -c \. writes",
    b"\xff\xfe{\0": "is UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8$",
}


@pytest.mark.parametrize("contents", OF_PIPES)
def test_pipes_give_lines(contents: bytes) -> None:
    """What else a pipe gives is named, with a way out."""
    before, (end, start) = os.dup(0), os.pipe()
    os.write(start, contents)
    os.close(start)
    os.dup2(end, 0)
    try:
        with pytest.raises(UserError, match=f"^the standard input .*{OF_PIPES[contents]}"):
            list(read_documents(["-"]))
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(end)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A file is read whatever the bytes of its name are."""
    for form in ("lines", "parquet", "arrow stream", "arrow file"):
        FORMATS[form](tmp_path / "data")
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        (tmp_path / "data").rename(path)
        assert texts_of(str(path)) == TEXTS


def test_names_with_line_ends(tmp_path: Path) -> None:
    """An error that names such a file is one line."""
    write(tmp_path, "a\nb.jsonl", b'{"text": 1}\n')
    write(tmp_path, "zip/a\nb.zip", b"PK\x03\x04..\xff")
    for read in (
        lambda: find_files([str(tmp_path)]),
        lambda: texts_of_lines(tmp_path / "a\nb.jsonl"),
    ):
        with pytest.raises(UserError, match=r"a\\nb\.") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow or zstandard the error says what to install."""
    for form in ("parquet", "zstd"):
        FORMATS[form](tmp_path / form)
    for package in ("pyarrow", "zstandard"):
        monkeypatch.setitem(sys.modules, package, None)
    for form in ("parquet", "zstd"):
        with pytest.raises(UserError, match=r"pip install 'nemo_chameleon\[data\]'"):
            list(read_documents([tmp_path / form]))


def test_all_of_a_folder_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in subfolders and behind links are read; what is not read is said in one line."""
    (tmp_path / "all" / "sub" / ".cache").mkdir(parents=True)
    (tmp_path / "all" / "a.jsonl").write_bytes(b'{"text": "1"}\n')
    (tmp_path / "all" / "sub" / "b.gz").write_bytes(gzip.compress(b'{"text": "2"}\n'))
    (tmp_path / "all" / "sub" / "c.jsonl").write_text('{"text": "3"}')
    (tmp_path / "all" / "sub" / "up").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "sub" / "empty.jsonl").touch()
    os.mkfifo(tmp_path / "all" / "pipe")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "d.jsonl").write_text('{"text": "4"}')
    (tmp_path / "all" / "z").symlink_to(tmp_path / "far")
    hub = ("blobs/0", "refs/main", "snapshots/1/e.jsonl")
    for name in (f"sub/hub/{one}" for one in hub):
        (tmp_path / "all" / name).parent.mkdir(parents=True)
        (tmp_path / "all" / name).write_text('{"text": "5"}')
    for name in ("README.md", "notes.md", "LICENSE", "sub/.cache/x", "x.bin", "x.idx", "y.part"):
        (tmp_path / "all" / name).write_bytes(b"\0")
    (tmp_path / "all" / "readmes.jsonl").write_text('{"text": "0"}')
    folder = str(tmp_path / "all")
    (found,) = find_files([folder], "data.x")
    assert [text_at(line.text, "text") for line in read_lines(found.files)] == list("102354")
    said = capsys.readouterr().out
    assert said == (
        f"data.x={folder}: 7 file(s) are read: 6 .jsonl, 1 without an ending; not read: "
        "3 side files (LICENSE, README.md, ...), 1 pipes or devices (pipe), 1 hidden "
        "(sub/.cache/x), 2 of a Hugging Face cache, beside its snapshots (sub/hub/blobs/0, "
        "sub/hub/refs/main), 2 Megatron datasets (x.bin, x.idx), 1 unfinished or backups (y.part)\n"
    )
    (tmp_path / "all" / "sub" / "photo.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(UserError, match=r"photo\.png is an image.* move it out of the folder"):
        find_files([folder])
    (tmp_path / "all" / "sub" / "photo.png").unlink()
    monkeypatch.chdir(tmp_path / "all")
    assert texts_of(".") == list("102354")
    (tmp_path / "all" / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone\.jsonl is a link to a file that is not there"):
        find_files([folder])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README").touch()
    with pytest.raises(UserError, match=r"no file with data \(not read: 1 side files \(README\)"):
        find_files([str(tmp_path / "none")])


def test_a_glob_is_accounted_for_as_a_folder_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a glob matches is read or said, unless its ending is named; splits are refused."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    for name in ("README.md", "notes.md", "LICENSE", "sub/README"):
        (tmp_path / name).write_text(name)
    assert texts_of(f"{tmp_path}/*") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    said = capsys.readouterr().out
    assert "4 side files (LICENSE, README.md, ...)" in said
    sources = find_files([f"{tmp_path}/*"])
    assert [one.path.name for one in sources] == ["a.jsonl", "b.jsonl", "sub"]
    assert texts_of(f"{tmp_path}/**/*") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert texts_of(f"{tmp_path}/*.md") == ["README.md", "notes.md"]
    with pytest.raises(UserError, match="the glob matches no file"):
        find_files([f"{tmp_path}/*.parquet"])
    with pytest.raises(UserError, match=r"no file with data \(not read: 1 side"):
        find_files([f"{tmp_path}/LIC*"])
    with pytest.raises(UserError, match=r"^data\.x: the part .*a\.jsonl is there twice"):
        find_files([f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl"], "data.x")
    with pytest.raises(UserError, match="the part - is there twice"):
        find_files(["-", "-"])
    (tmp_path / "test.jsonl").write_text('{"text": "t"}')
    (tmp_path / "train.jsonl").write_text('{"text": "t"}')
    with pytest.raises(UserError, match="files of several splits, such as test"):
        find_files([f"{tmp_path}/t*.jsonl"])


def test_files_that_tools_leave_beside_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Spark, NeMo and file managers write beside data is no data."""
    write(tmp_path, "part-0.jsonl", LINES)
    for name in ("_SUCCESS", "_committed_1", "_common_metadata", "Thumbs.db", "desktop.ini"):
        write(tmp_path, name, b"\0\xff")
    for name in ("part-0.jsonl.idx.npy", "part-0.jsonl.idx.info", "_temporary/0/part-1.jsonl"):
        write(tmp_path, name, b"\x93NUMPY")
    assert texts_of(str(tmp_path)) == TEXTS
    said = capsys.readouterr().out
    assert "7 side files" in said
    assert "1 unfinished or backups (_temporary/0/part-1.jsonl)" in said


BACKUPS = (
    "a.jsonl.old a.jsonl.orig a.jsonl.1 a.jsonl.tmp.123 a.jsonl.bak2 a.jsonl.2026-11-28 "
    "a_backup.jsonl a-old.jsonl a.jsonl.orig.gz a_bak_1.jsonl #a.jsonl# a.jsonl.swo a.jsonl~"
).split()


def test_backups_beside_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Backups are left out and said, unless their ending is named; other names are data."""
    for name in BACKUPS:
        write(tmp_path, name, b"oops")
    write(tmp_path, "a.jsonl", LINES)
    assert texts_of(str(tmp_path)) == TEXTS
    assert f"{len(BACKUPS)} unfinished or backups (#a.jsonl#, " in capsys.readouterr().out
    assert texts_of(f"{tmp_path}/*.orig") == ["oops"]
    names = ("b.txt.1", "b.txt.2", "c_old.txt", "v1.0", "v1.0.1", "old.txt", "d.en", "d.en.tok")
    for name in names:
        write(tmp_path, f"data/{name}", b"a document")
    assert len(files_of(f"{tmp_path}/data")) == len(names)


def test_files_of_several_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script or a page beside documents is read, and counted by its ending."""
    for name in ("a.txt", "b.txt.gz", "run.sh"):
        write(tmp_path, name, b"a document")
    assert len(files_of(str(tmp_path))) == 3
    assert f"{tmp_path}: 3 file(s) are read: 2 .txt, 1 .sh\n" == capsys.readouterr().out
    (tmp_path / "run.sh").unlink()
    assert len(files_of(str(tmp_path))) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("_delta_log/00000000000000000000.json", "a table of Delta, .* to a folder of its own"),
        (".hoodie/hoodie.properties", "a table of Hudi"),
        ("metadata/v1.metadata.json", "a table of Iceberg"),
    ],
)
def test_tables_with_older_versions(name: str, fault: str, tmp_path: Path) -> None:
    """A folder that keeps older versions of a table beside the newest is refused."""
    write(tmp_path, "part-0.jsonl", LINES)
    write(tmp_path, name, b"{}")
    with pytest.raises(UserError, match=fault):
        texts_of(str(tmp_path))


def test_one_revision_of_a_cached_dataset(tmp_path: Path) -> None:
    """Of a Hugging Face cache with two revisions, one has to be named."""
    for revision in ("abc", "def"):
        write(tmp_path, f"datasets--a/snapshots/{revision}/data/a-{revision}.jsonl", LINES)
    write(tmp_path, "datasets--a/refs/main", b"abc")
    one = tmp_path / "datasets--a/snapshots/abc"
    with pytest.raises(UserError, match=f"several revisions .* such as {one}$"):
        texts_of(str(tmp_path))
    assert texts_of(str(one)) == TEXTS


def test_copies_under_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of a file is read, with a warning; two documents of plain text may be alike."""
    write(tmp_path, "a/one.jsonl", LINES)
    write(tmp_path, "a/two.jsonl", LINES)
    write(tmp_path, "b/one.txt", b"alike")
    write(tmp_path, "b/two.txt", b"alike")
    assert texts_of(str(tmp_path / "a")) == TEXTS * 2
    assert "two.jsonl looks like a copy of" in capsys.readouterr().out
    assert texts_of(str(tmp_path / "b")) == ["alike"] * 2
    assert "copy" not in capsys.readouterr().out


def test_plain_text_beside_records(tmp_path: Path) -> None:
    """A script beside records is no document: the error names both, and a path that works."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "1"}\n'))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "2"}\n'))
    (tmp_path / "load.py").write_text("import json")
    for path in (str(tmp_path), f"{tmp_path}/*"):
        with pytest.raises(
            UserError, match=r"records, such as b\.jsonl\.gz, .* such as load\.py"
        ) as e:
            find_files([path], "data.domains.d.path")
        named = str(e.value).split("such as 'data.domains.d.path=")[1].split("'")[0]
        assert texts_of(named) == ["2", "1"]
    assert texts_of(str(tmp_path / "load.py"), str(tmp_path / "sub")) == ["import json", "1"]


def test_tables_hold_what_lines_would(tmp_path: Path) -> None:
    """Bytes are text, a map is an object, and a field that only other rows have is not there."""
    calls = [
        [{"name": "f", "arguments": {"city": "Oslo"}}],
        [{"name": "g", "arguments": {"id": 1}}],
    ]
    columns = {
        "text": arrow.array(["é".encode(), b"b"], arrow.binary()),
        "calls": arrow.array(calls),
        "meta": arrow.array([[("k", 1)], []], arrow.map_(arrow.string(), arrow.int64())),
        "day": arrow.array([datetime.date(2026, 1, 2), None]),
        "time": arrow.array([1, None]).cast(arrow.timestamp("ns")),
        "zone": arrow.array([3 * 10**17, None]).cast(arrow.timestamp("us", "No/Where")),
    }
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    first, second = (json.loads(line.text) for line in read_lines(files_of(str(tmp_path))))
    assert first.pop("zone") == "11476-08-15 05:20:00.000000Z"
    times = {"day": "2026-01-02", "time": "1970-01-01 00:00:00.000000001"}
    assert first == {"text": "é", "calls": calls[0], "meta": {"k": 1}} | times
    nothing = {"day": None, "time": None, "zone": None}
    assert second == {"text": "b", "calls": calls[1], "meta": {}} | nothing
    twice = arrow.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "w.parquet")
    with pytest.raises(UserError, match=r"w\.parquet: two columns have the same name"):
        texts_of(str(tmp_path / "w.parquet"))
    bad = arrow.array([b"ok", b"\xff"], arrow.binary())
    parquet.write_table(arrow.table({"text": bad}), tmp_path / "u.parquet")
    with pytest.raises(UserError, match=r"u\.parquet, row 2: the column 'text' has bytes that are"):
        texts_of(str(tmp_path / "u.parquet"))


def test_columns_that_are_not_needed(tmp_path: Path) -> None:
    """Columns of a table that are left out need not be text, such as those of images."""
    image = arrow.array([{"bytes": b"\x89PNG\xff", "path": None}])
    images = arrow.table({"text": ["a"], "image": image})
    parquet.write_table(images, tmp_path / "a.parquet")
    with arrow.ipc.new_file(str(tmp_path / "a.arrow"), images.schema) as writer:
        writer.write_table(images)
    for name in ("a.parquet", "a.arrow"):
        found = files_of(str(tmp_path / name))
        with pytest.raises(UserError, match="the column 'image' has bytes that are not UTF-8"):
            list(read_lines(found))
        (line,) = read_lines(found, without=["image", "no column"])
        assert json.loads(line.text) == {"text": "a"}


def test_a_dataset_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of save_to_disk is read as its state.json lists it."""
    for number, half in enumerate((TEXTS[:300], TEXTS[300:])):
        arrow_stream(tmp_path / f"data-{number:05}-of-00002.arrow", half)
    arrow_stream(tmp_path / "data-00000-of-00001.arrow", ["of an earlier version"])
    (tmp_path / "dataset_info.json").write_text("{}")
    names = [{"filename": f"data-{number:05}-of-00002.arrow"} for number in range(2)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": names}))
    assert texts_of(str(tmp_path)) == TEXTS
    said = capsys.readouterr().out
    assert "1 not listed in state.json (data-00000-of-00001.arrow)" in said
    (tmp_path / names[1]["filename"]).unlink()
    with pytest.raises(UserError, match=r"state\.json lists data-00001-of-00002\.arrow, which is"):
        find_files([str(tmp_path)])


@pytest.mark.parametrize("other", ["a.jsonl.gz", "a.jsonl.ZST", "a.parquet", "a.json"])
def test_a_file_beside_itself(other: str, tmp_path: Path) -> None:
    """A file beside its compressed copy is not read twice, unless both are named."""
    for name in ("a.jsonl", other):
        (tmp_path / name).write_bytes(b'{"text": "a"}\n')
    for path in (str(tmp_path), f"{tmp_path}/*"):
        with pytest.raises(UserError, match=r"a\.\S+ and a\.\S+ in .* the same documents twice"):
            find_files([path])
    assert texts_of(f"{tmp_path}/a.jsonl", f"{tmp_path}/{other}") == ["a", "a"]
    (tmp_path / other).rename(tmp_path / "b.jsonl")
    assert texts_of(str(tmp_path)) == ["a", "a"]


def test_numbered_sets(tmp_path: Path) -> None:
    """A missing file of a set is named, but a glob may ask for a part of the set."""
    for number in (1, 2, 3):
        (tmp_path / f"part-{number:05}-of-00003.jsonl").write_bytes(b'{"text": "a"}\n')
    assert len(texts_of(str(tmp_path))) == 3
    (tmp_path / "part-00002-of-00003.jsonl").unlink()
    for path in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/part-*-of-00003.*"):
        with pytest.raises(UserError, match=r"part-00002-of-00003\.jsonl is missing .* 2 are") as e:
            find_files([path])
    assert len(texts_of(*str(e.value).split("to do without: ")[1].split())) == 2
    with pytest.raises(UserError, match=r"do without: 'data\.d=\[.*-of-00003\.jsonl,.*\]'$"):
        find_files([str(tmp_path)], "data.d")
    assert len(texts_of(f"{tmp_path}/*-0000[13]-*")) == 2
    (tmp_path / "part-00002-of-00003.jsonl").write_bytes(b'{"text": "a"}\n')
    (tmp_path / "part-00001-of-00001.jsonl").write_bytes(b'{"text": "a"}\n')
    with pytest.raises(UserError, match="two numberings of one set"):
        find_files([str(tmp_path)])
