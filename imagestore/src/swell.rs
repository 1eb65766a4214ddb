//! How much something compressed may swell to when it is read. What swells further is not meant to be used: it is there to
//! fill a disk. Who reads it counts, and decides what becomes of it.

/// Whatever the size.
const ALWAYS: u64 = 1 << 30;
/// And for each byte of it.
const TIMES: u64 = 200;

/// For so many bytes.
pub(crate) fn bound(size: u64) -> u64 {
    size.saturating_mul(TIMES).saturating_add(ALWAYS)
}
