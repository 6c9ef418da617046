//! Rollouts step by step, and random fates.
