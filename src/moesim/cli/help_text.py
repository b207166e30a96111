"""Texts that the help of all commands shares."""


def examples(*lines: str) -> str:
    """Text below the options of a command's help."""
    return "\n\n".join(["[bold]Examples[/bold]", *lines])
