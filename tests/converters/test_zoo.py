"""The zoo's cards, and downloads from a server of our own."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import converters
from converters import download as downloads
from converters import zoo
from converters.card import read_card
from converters.download import download
from converters.zoo import ZooCard, cards, fetch, find_card
from surgery.errors import SurgeryError
from surgery.marks import labels, preprocessing
from tests.cli.test_cli import fails, run

CONTENT = bytes(range(256)) * 8192  # 2 MiB: two pieces
SHA1 = hashlib.sha1(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any path, and remembers the ranges that it was asked for.

    Attributes:
        breaks: How many answers end after `most` bytes.
        ranges: Whether it knows Range.
        leads: Where it redirects to, if anywhere.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.version = CONTENT, '"1"'
        self.breaks, self.most = 0, 700_000
        self.ranges, self.status, self.leads = True, 200, ""
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.leads and "elsewhere" not in self.path:
            self.send_response(302)
            self.send_header("Location", server.leads)
            self.end_headers()
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted[6:-1]) if wanted and server.ranges else 0
        if self.headers.get("If-Range", server.version) != server.version:
            start = 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.version:
            self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        rest = server.content[start:]
        if server.breaks:
            server.breaks -= 1
            rest = rest[: server.most]
        self.wfile.write(rest)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    target, told = tmp_path / "new" / "file.bin", list[tuple[int, int | None]]()
    assert download(server.url, target, {"sha1": SHA1}, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert left(target.parent) == {"file.bin"}
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert not download(server.url, target, {"sha1": SHA1})
    assert server.asked == [None]


def test_a_broken_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    assert download(server.url, tmp_path / "f", {"sha1": SHA1})
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=700000-", "bytes=1400000-"]


def test_it_goes_on_when_run_again(server: Server, tmp_path: Path) -> None:
    server.breaks = 3
    server.most = 100_000
    with pytest.raises(SurgeryError, match=r"the download stopped \(.+\) after 300,000 bytes; run it again to go on"):
        download(server.url, tmp_path / "f", {"sha1": SHA1})
    assert left(tmp_path) == {".f.part", ".f.tag"}
    assert download(server.url, tmp_path / "f", {"sha1": SHA1})
    assert server.asked[-1] == "bytes=300000-"
    assert left(tmp_path) == {"f"}


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks = 1
    assert download(server.url, tmp_path / "f", {"sha1": SHA1})
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=700000-"]


def test_parts_of_two_versions_are_not_joined(server: Server, tmp_path: Path) -> None:
    """Nor where no checksum would tell."""
    server.breaks = 3
    server.most = 100_000
    with pytest.raises(SurgeryError, match="run it again"):
        download(server.url, tmp_path / "f", {})
    server.content, server.version = CONTENT[::-1], '"2"'
    assert download(server.url, tmp_path / "f", {})
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]
    server.breaks, server.version = 3, ""  # and a server that does not say which version
    with pytest.raises(SurgeryError, match="run it again"):
        download(server.url, tmp_path / "g", {})
    asked = len(server.asked)
    assert download(server.url, tmp_path / "g", {})
    assert server.asked[asked:] == [None]


def test_a_part_that_is_all_of_it_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".f.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "f", {"sha1": SHA1})
    (tmp_path / ".g.part").write_bytes(CONTENT + b"too much")
    assert download(server.url, tmp_path / "g", {"sha1": SHA1})
    assert (tmp_path / "g").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("digests", "size", "message"),
    [
        ({"sha1": "0" * 40}, None, rf"is not the published file: its sha1 is {SHA1}, not 0{{40}}"),
        ({"sha256": "12345678"}, None, "its sha256 is [0-9a-f]{8}, not 12345678"),
        ({}, 5, "has 2,097,152 bytes, and the published file 5"),
    ],
)
def test_what_was_not_published_is_not_kept(
    server: Server, tmp_path: Path, digests: dict[str, str], size: int | None, message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        download(server.url, tmp_path / "f", digests, size=size)
    assert left(tmp_path) == set()
    (tmp_path / "f").write_bytes(CONTENT)  # and what was there before is not taken for it
    with pytest.raises(SurgeryError, match=message.replace("is not the", ".* is not the")):
        download(server.url, tmp_path / "f", digests, size=size)


def test_a_server_that_sends_too_much(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_MOST_BYTES", 1000)
    with pytest.raises(SurgeryError, match="sends more than the 1,000 bytes"):
        download(server.url, tmp_path / "f", {})
    assert left(tmp_path) == set()


def test_what_the_server_does_not_have(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(SurgeryError, match=r"file\.bin: the server answers 404 Not Found"):
        download(server.url, tmp_path / "f", {})
    assert left(tmp_path) == set()
    assert len(server.asked) == 1
    server.status = 503  # which may pass
    with pytest.raises(SurgeryError, match="the download stopped"):
        download(server.url, tmp_path / "f", {})
    assert len(server.asked) == 4


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"the download stopped .* after 0 bytes"):
        download("http://127.0.0.1:9/x", tmp_path / "f", {})


@pytest.mark.parametrize("elsewhere", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirections_stay_on_the_web(server: Server, tmp_path: Path, elsewhere: str) -> None:
    server.leads = elsewhere
    with pytest.raises(SurgeryError, match=r"which is not on the web|the server answers 302"):
        download(server.url, tmp_path / "f", {})
    server.leads = server.url.replace("file", "elsewhere")
    assert download(server.url, tmp_path / "f", {"sha1": SHA1})


CARD: dict[str, Any] = {
    "name": "lenet",
    "title": "LeNet",
    "framework": "Caffe",
    "source": "https://example.org/",
    "files": {"weights": {"name": "a.caffemodel", "url": "https://example.org/a.caffemodel"}},
    "convert": "surgery convert {folder}",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../a"}, "is not a plain file name"),
        ({"name": ".hidden"}, "is not a plain file name"),
        ({"name": "a/b"}, "is not a plain file name"),
        ({"name": "C:\\a"}, "is not a plain file name"),
        ({"url": "file:///etc/passwd"}, "is not an address that begins with http"),
        ({"url": "ftp://example.org/a"}, "is not an address that begins with http"),
        ({"url": "http:///a"}, "is not an address that begins with http"),
        ({"sha1": "12"}, "is not a sha1"),
        ({"sha256": "1234567"}, "is not a sha256"),
        ({"sha256": "xyzxyzxyz"}, "is not a sha256"),
        ({"sha512": "12"}, "Extra inputs"),
    ],
)
def test_cards_that_name_no_file_on_the_web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(zoo, "folders", lambda: [tmp_path])
    file = {**CARD["files"]["weights"], **changes}
    (tmp_path / "lenet.yaml").write_text(yaml.safe_dump({**CARD, "files": {"weights": file}}))
    with pytest.raises(SurgeryError, match=rf"lenet\.yaml: files\.weights.*: .*{message}"):
        cards()


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "cannot be read"), ("name: x", r"title: Field required"), ("[]", "the file: ")],
)
def test_cards_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setattr(zoo, "folders", lambda: [tmp_path])
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SurgeryError, match=message):
        cards()
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(CARD))
    with pytest.raises(SurgeryError, match="must be that of the file"):
        cards()


def test_the_zoo_has_what_the_field_links_to() -> None:
    found = {card.name: card for card in cards()}
    assert {
        "caffe_alexnet", "caffe_caffenet", "caffe_googlenet", "caffe_rcnn_ilsvrc13", "keras_vgg16", "keras_resnet50",
        "keras_mobilenetv2", "keras_nasnetmobile", "slim_vgg_16", "slim_inception_v3", "slim_resnet_v1_50",
        "torchvision_resnet18", "torchvision_vit_b_16", "torch7_resnet18", "caffe_vgg16",
    } <= found.keys()  # fmt: skip
    assert found["caffe_alexnet"].files["weights"].digests == {"sha1": "9116a64c0fbe4459d18f4bb6b56d647b63920377"}


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.name)
def test_a_card_is_whole(card: ZooCard) -> None:
    names = {file.name for file in card.files.values()}
    assert len(names) == len(card.files)
    assert card.labels is None or card.labels.file is None or card.labels.file in names
    assert card.convert.startswith("surgery convert ")
    assert not any(re.search(r"\{(?!folder\})\w+\}", command) for command in card.commands(Path("x")))
    shape = card.input.shape if card.input is not None else ()
    if card.preprocessing is not None and card.input is not None:
        height_width = shape[1:] if card.input.layout == "NCHW" else shape[:2]
        assert card.preprocessing.size == height_width
        assert card.preprocessing.layout == card.input.layout
    if card.preprocessing is not None or (card.labels is not None and card.labels.file is not None):
        # They reach the model only where what is converted is a file that the folder's card.yaml names.
        roles = {role: file.name for role, file in card.files.items() if role in ("definition", "weights")}
        known = {*roles.values(), card.definition}
        words = card.convert.replace("{folder}", "x").split()
        sources = [word.partition("/")[2] or None for word in words if word.split("/")[0] == "x"]
        assert any(source is None or source in known for source in sources)
    torchvision = re.fullmatch(
        r"[\w.-]+-([0-9a-f]{8})\.pth", card.files["weights"].name if "weights" in card.files else ""
    )
    if torchvision:  # which names its files by their digest
        assert card.files["weights"].sha256 == torchvision[1]


def test_images_are_resized_as_published() -> None:
    """As torchvision's weights say (`Weights.transforms()`), and fb.resnet.torch, TF-Slim and Caffe's examples do."""
    how = {card.name: card.preprocessing for card in cards()}
    found = {name: each.resize for name, each in how.items() if each is not None}
    torchvision = {name: size for name, size in found.items() if name.startswith("torchvision_")}
    others = {"torchvision_convnext_tiny": 236, "torchvision_inception_v3": 342, "torchvision_swin_t": 232}
    assert torchvision == {name: others.get(name, 256) for name in torchvision}
    assert {found[f"torch7_resnet{depth}"] for depth in (18, 34, 50, 101)} == {256}
    assert {found[f"slim_{name}"] for name in ("vgg_16", "vgg_19", "resnet_v1_50")} == {256}
    # The middle 0.875 of either side, stretched to the input.
    assert (found["slim_inception_v1"], found["slim_inception_v3"]) == ((256, 256), (342, 342))
    assert {found[f"caffe_{name}"] for name in ("alexnet", "caffenet", "googlenet", "flickr_style")} == {(256, 256)}
    assert found["caffe_rcnn_ilsvrc13"] == (227, 227)  # a region, stretched whole


def test_efficientnet_is_defined_as_its_weights_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras divides by the root of ImageNet's deviation once more where the weights are ImageNet's, and only there."""
    from tests.converters.keras_checks import keras

    module = sys.modules[keras.applications.EfficientNetB0.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: "")
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_, **__: None)
    made = re.search(r'python -c "(.*)"', find_card("keras_efficientnetb0").prepare[0])
    assert made is not None
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(made[1], {})
    layers = json.loads(text.getvalue())["config"]["layers"]
    scales = [layer["config"]["scale"] for layer in layers if layer["class_name"] == "Rescaling"]
    assert scales[0] == pytest.approx(1 / 255)
    assert scales[1] == pytest.approx([0.229**-0.5, 0.224**-0.5, 0.225**-0.5])


def test_the_layout_is_the_models(tmp_path: Path, lenet_files: tuple[Path, Path]) -> None:
    """What a card says of the file is not so any more where an option turned it around."""
    how = {"color": "gray", "layout": "NHWC", "size": [28, 28]}
    (tmp_path / "lenet.keras").write_bytes((lenet_files[0].parent / "formats" / "lenet.keras").read_bytes())
    data = {"name": "LeNet", "files": {"definition": "lenet.keras"}, "preprocessing": how}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(data))
    for layout, kept, shape in (("nchw", "NCHW", [1, 28, 28]), ("keras", "NHWC", [28, 28, 1])):
        model = converters.convert(tmp_path, layout=layout)
        found = preprocessing(model, str(model.graph.inputs[0].name))
        assert found is not None
        assert list(model.graph.inputs[0].shape or [])[1:] == shape
        assert found.layout == kept


def test_lenet_is_fetched_and_converted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet_files: tuple[Path, Path]
) -> None:
    """As a user does: the files come from a zoo, and converting them knows labels and preprocessing."""
    server.content = lenet_files[1].read_bytes()
    monkeypatch.setattr(zoo, "folders", lambda: [tmp_path / "zoo"])
    weights = {"name": "net.caffemodel", "url": server.url, "sha1": hashlib.sha1(server.content).hexdigest()}
    how = {"color": "gray", "scale": 0.5, "size": [28, 28]}
    data = {**CARD, "files": {"weights": weights}, "definition": "net.prototxt", "preprocessing": how}
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "lenet.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.chdir(tmp_path)
    done = json.loads(run("zoo", "fetch", "lenet", "--json").stdout)
    assert done == {
        "name": "lenet",
        "folder": "lenet",
        "files": [{"name": "net.caffemodel", "downloaded": True, "verified": "sha1"}],
        "commands": ["surgery convert lenet"],
    }
    assert left(tmp_path / "lenet") == {"net.caffemodel", "card.yaml"}
    text = run("zoo", "fetch", "lenet").stdout
    assert "lenet/net.caffemodel: was there, sha1 verified" in text
    assert "$ surgery convert lenet" in text
    (tmp_path / "lenet" / "net.prototxt").write_bytes(lenet_files[0].read_bytes())
    model = converters.convert(tmp_path / "lenet")
    found = preprocessing(model, "data")
    assert found is not None
    assert (found.color, found.scale, found.size) == ("gray", 0.5, (28, 28))
    server.content = b"another file"
    (tmp_path / "lenet" / "net.caffemodel").unlink()
    assert "its sha1 is" in fails("zoo", "fetch", "lenet")


def test_another_networks_card_is_not_replaced(server: Server, tmp_path: Path) -> None:
    card = ZooCard.model_validate({**CARD, "files": {"weights": {"name": "a.caffemodel", "url": server.url}}})
    fetch(card, tmp_path)
    fetch(card, tmp_path)
    with pytest.raises(SurgeryError, match=r"has the card\.yaml of LeNet; name another folder"):
        fetch(card.model_copy(update={"title": "AlexNet"}), tmp_path)
    found = read_card(tmp_path)
    assert found is not None
    assert found.name == "LeNet"


def test_labels_come_along(server: Server, tmp_path: Path) -> None:
    """In the form of Keras' imagenet_class_index.json."""
    server.content = json.dumps({str(i): [f"n{i}", f"name {i}"] for i in range(12)}).encode()
    index = {"name": "index.json", "url": server.url}
    data = {**CARD, "files": {"labels": index}, "labels": {"classes": 12, "file": "index.json"}}
    fetch(ZooCard.model_validate(data), tmp_path)
    card = read_card(tmp_path)
    assert card is not None
    assert card.labels == [f"name {i}" for i in range(12)]


@pytest.mark.parametrize("text", ["{", '{"1": "a"}', '{"0": 1}', "3", "[]", '["a", 2]'])
def test_labels_that_are_none(tmp_path: Path, text: str, lenet_files: tuple[Path, Path]) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(SurgeryError, match=r"labels\.json: the labels cannot be read"):
        converters.convert(lenet_files[0], labels=tmp_path / "labels.json")


def test_labels_in_json(tmp_path: Path, lenet_files: tuple[Path, Path]) -> None:
    names = [f"digit {i}" for i in range(10)]
    (tmp_path / "labels.json").write_text(json.dumps(names))
    assert labels(converters.convert(lenet_files[0], labels=tmp_path / "labels.json"), "prob") == names


def test_the_command_line_lists_and_shows() -> None:
    text = run("zoo", "list", "caffe").stdout
    assert "caffe_alexnet" in text
    assert "torchvision" not in text
    names = [entry["name"] for entry in json.loads(run("zoo", "list", "PyTorch", "resnet", "--json").stdout)]
    assert names == [card.name for card in cards() if card.framework == "PyTorch" and "resnet" in card.name]
    assert "the zoo has nothing with the words whatever" in fails("zoo", "list", "whatever")
    shown = run("zoo", "show", "torchvision_resnet18").stdout
    assert yaml.safe_load(shown)["files"]["weights"]["sha256"] == "f37072fd"
    assert json.loads(run("zoo", "show", "torchvision_resnet18", "--json").stdout) == yaml.safe_load(shown)
    assert "did you mean 'caffe_alexnet'" in fails("zoo", "show", "caffe_alexnets")
    assert find_card("caffe_vgg16").framework == "Caffe"
