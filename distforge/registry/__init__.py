"""The model registry and the manifest of a model directory.

Importing this package starts nothing: MLflow is imported when a registry is first used.
"""

from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest

__all__ = ["MANIFEST_NAME", "verify_manifest", "write_manifest"]
