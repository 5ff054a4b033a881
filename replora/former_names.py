"""Names that classes had before, in the files of earlier runs. Files that name them go on loading."""

# Former name in the package `replora` -> its present name.
FORMER_NAMES = {"PeftConfig": "PeftMethodConfig"}
