//! End-to-end harness: namespaces as hosts, real clients and servers.
