"""`replora-cli serve`: a run that classifies images, as a page and an HTTP endpoint."""

from __future__ import annotations

from pathlib import Path


def serve(
    run: Path,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_megabytes: float = 20,
    max_megapixels: float = 100,
    device: str = "auto",
    checkpoint: Path | None = None,
    import_module: str | None = None,
    force: bool = False,
) -> None:
    """Serve a run that classifies images: a page to drop images on, and an HTTP endpoint.

        replora-cli serve runs/NAME
        curl --data-binary @photo.jpg "http://127.0.0.1:7860/classify?top_k=3"

    Needs the extra [serve] (Gradio). The page is for this machine alone, and has no password. Images are treated as by
    predict-files, one at a time, and deleted at the end. Ctrl-C stops it.

    Args:
        run: Directory of the run.
        host: Address to listen on. 0.0.0.0 lets everybody in who reaches this machine.
        port: Port to listen on; 0 for any free one. Default: 7860, or a free one if that is taken.
        max_megabytes: Size of the largest upload (> 0), in millions of bytes.
        max_megapixels: Size of the largest image (> 0), in millions of pixels.
        device: Device of the model: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        checkpoint: File of the backbone's weights, if they are no longer where the run had them.
        import_module: Python module that defines the run's LightningModule, if it is your own.
        force: Whether to use an adapter whose training diverged.
    """
    # Only here: the light verbs of the command line do not wait for torch.
    from replora import inference, runs
    from replora.adapters.state import read_metadata
    from replora.inference import server

    runs.import_module(import_module)
    limits = server.Limits(int(max_megabytes * 1e6), int(max_megapixels * 1e6))
    server.check_server(inference.predictor_of(run), limits, port)
    with server.listen(host, port) as bound:
        predictor = inference.load_run(run, device, checkpoint=checkpoint, force=force)
        status = runs.status_of_adapter(read_metadata(run / "adapter.safetensors"))
        name = run.resolve().name + ("" if status == "complete" else f" ({status})")
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
        print(f"{name} is served at {url} until Ctrl-C", flush=True)
        print(f'curl --data-binary @photo.jpg "{url}/classify"', flush=True)
        if host not in server.LOOPBACK:
            print(f"{host}: everybody who reaches this address can use it, there is no password", flush=True)
        server.serve(predictor, limits, bound, name)
    print("stopped")
