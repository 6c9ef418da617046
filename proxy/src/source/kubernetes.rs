//! The Kubernetes API as a source, through `kube`: the only file that knows the API server.
