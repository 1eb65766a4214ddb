//! A Dockerfile.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::dockerfile(bytes));
