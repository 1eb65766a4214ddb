//! A policy, a list of signatures, and what was signed.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sampan_imagestore::fuzzing::signature(bytes));
