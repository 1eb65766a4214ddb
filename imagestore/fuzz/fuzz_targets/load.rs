//! An archive of images, loaded into a store that a failed load leaves empty.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::load(bytes));
