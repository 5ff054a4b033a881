"""A run that classifies images, as a page to drop images on and an HTTP endpoint beside it."""

from __future__ import annotations

import functools
import io
import os
import signal
import socket
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_modules.predictors import ImagePredictor, PredictionError, Predictor
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.read import IMAGE_SUFFIXES
from replora.errors import RepLoRAError
from replora.io import markdown

PORT = 7860  # Gradio's own
TOP = 5  # classes that are shown
MOST_CONNECTIONS = 64
LOOPBACK = ("127.0.0.1", "localhost")


class ServerError(RepLoRAError):
    """The server cannot start."""


@dataclass(frozen=True)
class Limits:
    """What an upload may be.

    Attributes:
        bytes: Size of the file.
        pixels: Width times height, which is known before the image is decoded.
    """

    bytes: int = 20_000_000
    pixels: int = 100_000_000


@dataclass(frozen=True)
class Classifier:
    """A predictor of images for uploads, one at a time: several large ones at once could exhaust the memory.

    Attributes:
        predictor: Predictor of the run.
        limits: What an upload may be.
    """

    predictor: Predictor
    limits: Limits
    lock: threading.Lock = field(default_factory=threading.Lock)

    def classify(self, content: bytes, top_k: int = TOP) -> dict[str, Any]:
        """Bytes of an image file -> an entry as in the JSON of `predict-files`.

        Raises:
            CorruptImageError: They are no image, or too large.
        """
        with self.lock:
            (row,) = self.predictor.predict(self._open(content)).top(top_k)
        return {"predicted": row[0][0], "probability": row[0][1], "probabilities": dict(row)}

    def _open(self, content: bytes) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(content), formats=_formats())
        except Image.DecompressionBombError as error:
            raise CorruptImageError(f"The upload is too large: {error}") from error
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise CorruptImageError(
                f"The upload ({len(content):,} bytes) cannot be read as an image. Send the bytes of a file such as "
                "JPEG, PNG or WebP: curl --data-binary @photo.jpg"
            ) from error
        if image.width * image.height > self.limits.pixels:
            raise CorruptImageError(
                f"The upload has {image.width:,} x {image.height:,} pixels, more than {self.limits.pixels / 1e6:g} "
                "million. Make it smaller."
            )
        return image


@functools.cache
def _formats() -> list[str]:
    """The formats of photos and drawings, not all of Pillow's: that of EPS runs another program."""
    known = Image.registered_extensions()
    names = dict.fromkeys(known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known)
    return sorted(names, key=lambda name: name == "TGA")  # which has no signature, so it comes last


def check_server(kind: type[Predictor], limits: Limits, port: int | None) -> None:
    """Check options and the extra before anything is loaded.

    Raises:
        RepLoRAError: A number is out of its range, the run does not classify images, or gradio is missing.
    """
    if limits.bytes <= 0 or limits.pixels <= 0:
        raise ServerError("max_megabytes and max_megapixels are out of range. They must be greater than 0.")
    if port is not None and not 0 <= port < 2**16:
        raise ServerError(f"--port {port} is out of range. It must be from 0 (any free one) to {2**16 - 1}.")
    if not issubclass(kind, ImagePredictor):
        raise ServerError(f"serve is for a run that classifies images, and this one takes {kind.takes}.")
    if find_spec("gradio") is None:
        raise ServerError('serve needs gradio, which is not installed: pip install "replora[serve]"')


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens; without a port on 7860, or on a free one where that is taken.

    Raises:
        ServerError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, PORT if port is None else port), family=family)
    except OSError as error:
        if port is None:
            return listen(host, 0)
        why = error.strerror if error.errno is None or isinstance(error, socket.gaierror) else os.strerror(error.errno)
        raise ServerError(
            f"{host}:{port} cannot be used ({why}). Choose another port, or leave --port out for a free one."
        ) from error


def serve(predictor: Predictor, limits: Limits, bound: socket.socket, name: str) -> None:
    """Serve until Ctrl-C or SIGTERM. Uploads are deleted at the end; nothing leaves the machine.

    Args:
        predictor: Predictor of the run.
        limits: What an upload may be.
        bound: Socket from `listen`.
        name: Title of the page.
    """
    _formats()  # Pillow registers them without a lock
    with tempfile.TemporaryDirectory(prefix="replora-serve-") as uploads:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "GRADIO_RUN_HISTORY": "False"}
        import uvicorn  # an extra

        app = build_app(Classifier(predictor, limits), name, bound.getsockname()[0], Path(uploads))
        config = uvicorn.Config(
            app, log_level="warning", limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=1
        )
        # uvicorn finishes what it has begun, and then raises the signal again.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[bound])


def build_app(classifier: Classifier, name: str, host: str, uploads: Path) -> Any:
    """The FastAPI application: Gradio's page at /, and POST /classify."""
    # An extra.
    import gradio
    from fastapi import FastAPI
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse

    # Gradio would fetch addresses, read paths of this machine for a client, and turn and convert the image. These are
    # set on the component, because Gradio writes files beside the source of a class that derives from one.
    async def only_uploaded(path: Any) -> str:
        file = Path(path or "").resolve()
        if uploads.resolve() not in file.parents:
            raise gradio.Error("Only files that were uploaded here are classified.", print_exception=False)
        return str(file)

    def as_sent(payload: Any) -> Any:
        return payload and payload.path

    async def endpoint(request: Any) -> Any:
        def refused(status: HTTPStatus, why: object) -> JSONResponse:
            return JSONResponse({"error": str(why)}, status)

        top_k = request.query_params.get("top_k", str(TOP))
        if not top_k.isdecimal():
            return refused(HTTPStatus.BAD_REQUEST, f"top_k={top_k} is no integer >= 0; 0 is for all classes.")
        if request.headers.get("content-type", "").startswith("multipart/"):
            why = "Send the bytes of one image as the body: curl --data-binary @photo.jpg"
            return refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, why)
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > classifier.limits.bytes:
                why = f"The upload has more than {classifier.limits.bytes:,} bytes. Make it smaller."
                return refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
        try:
            return JSONResponse(await run_in_threadpool(classifier.classify, bytes(content), int(top_k)))
        except (CorruptImageError, PredictionError) as error:
            return refused(HTTPStatus.BAD_REQUEST, error)

    def shown(path: str | None) -> dict[str, float] | None:
        if path is None:  # the image was removed
            return None
        try:
            found: dict[str, float] = classifier.classify(Path(path).read_bytes())["probabilities"]
        except (CorruptImageError, PredictionError) as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return found

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_route("/classify", endpoint, methods=["POST"])
    if host in LOOPBACK:  # a page elsewhere on the web cannot give this machine another name
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    with gradio.Blocks(title=name, analytics_enabled=False) as page:
        gradio.Markdown(f"# {markdown(name)}")
        with gradio.Row():
            image = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Image")
            image.async_move_resource_to_block_cache, image.preprocess = only_uploaded, as_sent
            answer = gradio.Label(num_top_classes=TOP, label="Class")
        image.change(shown, image, answer, api_name=False, show_progress="hidden")
    return gradio.mount_gradio_app(
        app, page, path="/", max_file_size=classifier.limits.bytes, ssr_mode=False, mcp_server=False, footer_links=[]
    )
