//! Cluster DNS: Corefile, records of Services and pods, cache, forwarding.
