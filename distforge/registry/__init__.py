"""The model registry and the manifest of a model directory.

Importing this package starts nothing: MLflow is imported when a registry is first used.
"""

from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from distforge.registry.records import Handoff, Lineage, ModelVersion, RegistryConfig, Session
from distforge.registry.registry import ModelRegistry
from distforge.registry.store import RegistryUnavailable

__all__ = [
    "MANIFEST_NAME",
    "Handoff",
    "Lineage",
    "ModelRegistry",
    "ModelVersion",
    "RegistryConfig",
    "RegistryUnavailable",
    "Session",
    "verify_manifest",
    "write_manifest",
]
