//! Feeds `saved_index` of `tests/fuzz/bodies.rs`.

#![no_main]

#[path = "../../../tests/fuzz/bodies.rs"]
#[allow(dead_code)] // one body of several
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::saved_index(data));
