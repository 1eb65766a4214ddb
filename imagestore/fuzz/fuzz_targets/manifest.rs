//! A manifest, an index or a configuration.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::manifest(bytes));
