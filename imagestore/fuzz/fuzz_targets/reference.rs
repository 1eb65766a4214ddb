//! The name of an image; what is read is what is written.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::reference(bytes));
