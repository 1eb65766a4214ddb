//! A `hosts.toml`, and a configuration with credentials.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::hosts(bytes));
