//! Schedules over time.
