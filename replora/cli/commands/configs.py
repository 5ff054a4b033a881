"""`replora-cli configs`: the configurations that ship with the package."""

from __future__ import annotations


def configs() -> None:
    """List the configurations that ship with the package, one line each."""
    from replora.config_files import packaged_configs

    files = packaged_configs()
    width = max(map(len, files))
    for name, file in files.items():
        print(f"{name:<{width}}  {file.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
