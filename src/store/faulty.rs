//! A storage that fails on purpose, for tests and measurements: it stands between a store and its real objects.
//!
//! Invariant: without a plan it changes nothing. Faults enter where real ones do, through the trait of the
//! object storage, so that everything above is the code that users run.
