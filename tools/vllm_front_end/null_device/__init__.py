"""A device for vLLM that only lets time pass."""


def platform() -> str:
    """Where vLLM finds the platform."""
    return "null_device.platform.NullPlatform"
