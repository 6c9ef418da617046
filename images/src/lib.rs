//! Images without a registry: OCI archives, the pause image.
