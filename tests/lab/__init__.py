"""The test lab: real components, and stand-ins where the hardware is missing."""
