"""Hardware: devices, processors and links that price operators and transfers in seconds and joules."""
