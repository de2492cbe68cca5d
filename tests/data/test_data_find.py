"""Where files are looked for, and what is downloaded; a small server on this machine plays the public source."""

import hashlib
import http.server
import threading

import pytest
from data_files import write_idx_folder, write_tar

from archipel.core.errors import DataError
from archipel.data import available, describe, load
from archipel.data.find import Published, RemoteFile, download, fingerprint, locate, obtain

CONTENT = b"the published content"
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path):
    """Address of a server for the files in tmp_path/www, and the paths that were asked for."""
    www = tmp_path / "www"
    www.mkdir()
    (www / "file.bin").write_bytes(CONTENT)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(www))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHIPEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ARCHIPEL_DATA", raising=False)
    monkeypatch.delenv("ARCHIPEL_OFFLINE")
    return tmp_path / "cache"


def published(*urls, checksum=SHA256, unpack=None):
    return Published((RemoteFile("file.bin", urls, checksum, ("file.txt",), unpack),), ("set", "other"))


def test_a_given_path_then_archipel_data_then_the_cache_then_a_download(tmp_path, monkeypatch, cache, server):
    url, asked = server
    files = published(f"{url}/file.bin")
    assert locate(files) is None
    assert obtain("set", files) == [cache / "set" / "file.bin"]
    assert asked == ["/file.bin"]
    assert obtain("set", files) == [cache / "set" / "file.bin"]
    assert asked == ["/file.bin"]  # found in the cache
    monkeypatch.setenv("ARCHIPEL_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine" / "other").mkdir(parents=True)
    (tmp_path / "mine" / "other" / "file.txt").write_bytes(b"another copy is welcome")
    assert obtain("set", files) == [tmp_path / "mine" / "other" / "file.txt"]
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file.bin").write_bytes(b"")
    assert obtain("set", files, tmp_path / "given") == [tmp_path / "given" / "file.bin"]


def test_a_wrong_checksum_leaves_nothing_behind(cache, server):
    url, _ = server
    with pytest.raises(DataError, match=r"checksum is md5:\w+, not md5:beef as published; it was thrown away"):
        obtain("set", published(f"{url}/file.bin", checksum="md5:beef"))
    assert list((cache / "set").iterdir()) == []


def test_the_next_address_is_tried_when_one_does_not_answer(cache, server):
    url, asked = server
    assert obtain("set", published(f"{url}/gone.bin", f"{url}/file.bin"))[0].read_bytes() == CONTENT
    assert asked[-1] == "/file.bin"


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path, cache, server):
    url, _ = server

    def unpack(archive, target):
        target.write_bytes(archive.read_bytes().upper())

    def fail(archive, target):
        target.write_bytes(b"half")
        raise DataError("bad archive")

    with pytest.raises(DataError, match="bad archive"):
        obtain("set", published(f"{url}/file.bin", unpack=fail))
    assert list((cache / "set").iterdir()) == []
    assert obtain("set", published(f"{url}/file.bin", unpack=unpack))[0].read_bytes() == CONTENT.upper()


def test_offline_one_error_names_the_missing_file_and_three_ways(monkeypatch, tmp_path, cache, server):
    url, asked = server
    monkeypatch.setenv("ARCHIPEL_OFFLINE", "1")
    monkeypatch.setenv("ARCHIPEL_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        obtain("set", published(f"{url}/file.bin"))
    message = str(caught.value)
    for part in (
        "set/file.bin is missing",
        str(tmp_path),
        str(cache),
        "ARCHIPEL_OFFLINE is set",
        "path=",
        f"{url}/file.bin",
    ):
        assert part in message
    assert asked == []


def test_a_failed_download_says_why(cache, server):
    url, _ = server
    with pytest.raises(DataError, match=r"set/file\.bin is missing: .* failed \(.*/gone\.bin: File not found\)"):
        obtain("set", published(f"{url}/gone.bin"))


def test_a_given_path_without_the_files_is_not_silently_passed_over(tmp_path, cache, server):
    url, asked = server
    with pytest.raises(DataError, match=r"has no file\.bin\. Correct path="):
        obtain("set", published(f"{url}/file.bin"), tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        obtain("set", published(f"{url}/file.bin"), tmp_path / "nowhere")
    assert asked == []


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, cache, server):
    url, _ = server
    cache.write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot store file\.bin in the cache"):
        download("set", published(f"{url}/file.bin").files[0], cache / "set")


def test_a_single_file_or_folder_may_be_given_itself(tmp_path, cache, server):
    url, asked = server
    for name in ("anything.bin", "file.bin"):
        (tmp_path / name).write_bytes(b"")
        assert obtain("set", published(f"{url}/file.bin"), tmp_path / name) == [tmp_path / name]
    (tmp_path / "deep" / "file.txt").mkdir(parents=True)
    assert obtain("set", published(f"{url}/file.bin"), tmp_path / "deep" / "file.txt")[0].is_dir()
    assert asked == []


def test_named_sets_are_found_in_the_known_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHIPEL_DATA", str(tmp_path))
    write_idx_folder(tmp_path / "mnist", zipped=True)
    write_idx_folder(tmp_path / "FashionMNIST" / "raw")
    assert len(load("mnist").sealed_test) == 20
    assert len(load("fashion-mnist").sealed_test) == 20
    with pytest.raises(DataError, match=r"cifar10: cifar-10-python\.tar\.gz is missing"):
        load("cifar10")


def test_describe_and_available_say_where_data_is_or_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHIPEL_DATA", str(tmp_path))
    assert describe("mnist")["status"].startswith("missing: put mnist/train-images-idx3-ubyte.gz into")
    assert describe("mnist")["sizes"] == {"train+val": 60_000, "test": 10_000}
    status = {d["name"]: d["status"] for d in available()}
    assert status["digits"] == "ready"
    monkeypatch.delenv("ARCHIPEL_OFFLINE")
    assert describe("cora")["status"].startswith("to be downloaded from https://")
    write_idx_folder(tmp_path / "mnist")
    found = describe("mnist")
    assert found["status"] == f"found in {tmp_path / 'mnist'}"
    assert found["sizes"] == {"train": 48, "val": 12, "test": 20}
    assert len(found["where"]) == 4
    own = describe(tmp_path / "mnist")
    assert own["what"] == "your own (idx)"
    assert own["options"] == ["normalise"]


def test_fingerprints_of_many_files_are_one_line_that_depends_on_every_byte(tmp_path):
    for i in range(25):
        (tmp_path / f"{i}.txt").write_text(str(i))
    paths = sorted(tmp_path.iterdir())
    (line,) = fingerprint(paths)
    assert (line["path"], line["files"], line["bytes"]) == (str(tmp_path), 25, 40)
    assert fingerprint(paths[::-1]) == [line]
    (tmp_path / "3.txt").write_text("4")
    assert fingerprint(paths)[0]["sha256"] != line["sha256"]


def test_the_spoken_digits_archive_is_verified_by_its_content(tmp_path):
    from archipel.data.audio import unpack_fsdd

    archive = write_tar(tmp_path / "a.tar.gz", {"x/recordings/0_ann_0.wav": b"RIFF", "x/../evil.wav": b"no"})
    with pytest.raises(DataError, match=r"its 1 recordings have the digest \w+, not"):
        unpack_fsdd(archive, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0_ann_0.wav"]
