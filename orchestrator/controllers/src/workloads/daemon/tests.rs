//! Random nodes and fates.
