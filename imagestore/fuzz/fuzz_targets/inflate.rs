//! A blob of unknown compression.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::inflate(bytes));
