//! Table of statuses.
