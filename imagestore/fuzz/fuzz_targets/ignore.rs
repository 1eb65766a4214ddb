//! A `.dockerignore`, asked about its own lines.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::ignore(bytes));
