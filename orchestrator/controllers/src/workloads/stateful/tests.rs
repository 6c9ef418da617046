//! Order, always.
