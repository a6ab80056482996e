"""The one way from text to ids and back; see `Renderer`."""

from distforge.rendering.renderer import Asked, Renderer

__all__ = ["Asked", "Renderer"]
