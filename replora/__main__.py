"""`python -m replora` is `replora-cli`."""

from replora.cli.main import main

if __name__ == "__main__":
    main()
