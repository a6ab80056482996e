"""The model registry and the manifest of a model directory.

Importing this package starts nothing: MLflow is imported when a registry is first used.
"""

from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from distforge.registry.registry import Lineage, ModelRegistry, ModelVersion, RegistryConfig

__all__ = [
    "MANIFEST_NAME",
    "Lineage",
    "ModelRegistry",
    "ModelVersion",
    "RegistryConfig",
    "verify_manifest",
    "write_manifest",
]
