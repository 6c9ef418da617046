//! Whatever happens to its pods, a set ends with the number that it should have.
