"""`serve`: the page in a real browser, the HTTP endpoint beside it, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import replora
from replora.cli.main import main
from tests.cli.test_own_data import TINY, refused
from tests.cli.test_use import PAGE, write_odd_photos
from tests.fake_data import write_image_folder

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[serve]'")
LIMITS = ["--max_megabytes=0.1", "--max_megapixels=0.25"]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("serve")
    write_image_folder(home / "pets", ["cat", HOSTILE])
    options = [f"--data.root={home / 'pets'}", "--model.pretrained=true", "--model.optimizer.lr=0.02"]
    options += ["--trainer.max_epochs=3", "--model.schedule.warmup_epochs=0", f"--run_dir={home / 'run'}"]
    main(["fit", "--config=image_folder.yaml", *TINY, *options])
    return home


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """Address of the run, served by a process of its own that ends by Ctrl-C."""
    command = [sys.executable, "-m", "replora", "serve", str(home / "run"), "--port=0", *LIMITS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "is served at http://127.0.0.1:" in line
    address = line.split()[4]
    try:
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert shown.endswith("stopped\n")
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"replora-serve-{process.pid}-*"))


def post(address: str, content: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(address, content, headers or {"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_the_endpoint_gives_the_numbers_of_the_predictor_also_to_many_at_once(home: Path, url: str) -> None:
    files = [*sorted((home / "pets").rglob("*.jpg"))[::4], *write_odd_photos(home / "odd")]
    found = replora.load_run(home / "run")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda file: post(f"{url}/classify?top_k=0", file.read_bytes()), files))
    for file, (status, answer) in zip(files, answers, strict=True):
        row = found.predict(file).top(0)[0]
        assert status == 200
        assert answer == {"predicted": row[0][0], "probability": row[0][1], "probabilities": dict(row)}
    assert len(post(f"{url}/classify?top_k=1", files[0].read_bytes())[1]["probabilities"]) == 1


def test_the_examples_of_the_page_run(home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(home / "pets" / "cat" / "0.jpg", "photo.jpg")
    page = PAGE.replace("http://127.0.0.1:7860", url)
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "urllib" in code)
    names: dict[str, Any] = {}
    exec(compile(example, "serving.md", "exec"), names)
    assert names["answer"]["predicted"] == "cat"
    if shutil.which("curl"):
        (line,) = re.findall("^    (curl .*)$", page, flags=re.MULTILINE)
        printed = subprocess.run(shlex.split(line), capture_output=True, check=True).stdout
        assert json.loads(printed) == names["answer"]  # of three classes at most


def test_what_the_endpoint_refuses(home: Path, url: str) -> None:
    photo = (home / "pets" / "cat" / "0.jpg").read_bytes()
    address = f"{url}/classify"
    cases: list[tuple[int, str, tuple[Any, ...]]] = [
        (400, "cannot be read as an image", (address, b"no image")),
        (400, "cannot be read as an image", (address, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        (400, "cannot be read", (address, photo[: len(photo) // 2])),
        (400, "1,000 x 400 pixels, more than 0.25 million", (address, encoded(Image.new("L", (1000, 400))))),
        (400, "whose range is not known", (address, encoded(Image.new("F", (5, 5)), "TIFF"))),
        (400, "top_k=-1 is no integer", (f"{address}?top_k=-1", photo)),
        (413, "more than 100,000 bytes", (address, bytes(200_000))),
        (415, "curl --data-binary", (address, photo, {"Content-Type": "multipart/form-data; boundary=x"})),
        (400, "Invalid host header", (address, photo, {"Host": "evil.example"})),
    ]
    for status, message, arguments in cases:
        found = post(*arguments)
        assert found[0] == status
        assert message in str(found[1])
    assert post(address, photo)[0] == 200


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.png", "{photo}", "{tmp}/b.png"])
def test_the_page_takes_uploads_alone(path: str, home: Path, url: str, tmp_path: Path) -> None:
    """Neither does the server fetch an address, nor does it read a file of its machine for a client."""
    photo = home / "pets" / "cat" / "0.jpg"
    named = {"path": path.format(photo=photo, tmp=tmp_path), "meta": {"_type": "gradio.FileData"}}
    call = {"data": [named], "fn_index": 0, "session_hash": tmp_path.name, "trigger_id": 1}
    assert (
        post(f"{url}/gradio_api/queue/join", json.dumps(call).encode(), {"Content-Type": "application/json"})[0] == 200
    )
    with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash={tmp_path.name}", timeout=60) as events:
        found = next(line for line in events if b"process_completed" in line).decode()
    assert '"success":false' in found
    assert "cat" not in found


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Drops a file on the element that listens.
DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: "image/jpeg"}));
    const zone = document.querySelector("input[type=file]").closest("button");
    for (const kind of ["dragenter", "dragover", "drop"])
        zone.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def test_an_image_is_dropped_on_the_page_and_its_class_is_read(home: Path, url: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome is installed")
    with (
        playwright.sync_playwright() as p,
        p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as chrome,
    ):
        page = chrome.new_page()
        asked, dialogs = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("input[type=file]", state="attached")
        for name in ("cat", HOSTILE):
            photo = (home / "pets" / name / "0.jpg").read_bytes()
            page.evaluate(DROP, ["photo.jpg", base64.b64encode(photo).decode()])
            page.get_by_test_id("label-output-value").filter(has_text=name).wait_for()
            page.get_by_label("Remove Image").click()
        assert page.title() == "run"
    assert dialogs == []
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


def test_what_serve_refuses(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    run = str(home / "run")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        error = refused(capsys, "serve", run, f"--port={taken}")
        assert f"127.0.0.1:{taken} cannot be used (Address already in use). Choose another port, or leave" in error
    assert "--port 70000 is out of range" in refused(capsys, "serve", run, "--port=70000")
    assert "max_megabytes" in refused(capsys, "serve", run, "--max_megabytes=0")
    assert "cannot be used" in refused(capsys, "serve", run, "--host=no.such.host.invalid", "--port=0")
    assert "no fit.yaml" in refused(capsys, "serve", str(tmp_path))
    monkeypatch.setattr("replora.inference.server.find_spec", lambda _: None)
    error = refused(capsys, "serve", run)
    assert 'serve needs gradio, which is not installed: pip install "replora[serve]"' in error
