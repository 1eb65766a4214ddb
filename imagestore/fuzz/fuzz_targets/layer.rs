//! The tar of a layer, laid out beneath a directory; beside that directory nothing changes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::layer(bytes));
