//! Memory that a resting process doesn't need.
#![allow(unsafe_code)]

use std::ffi::c_int;

/// Gives free heap back to the kernel and unmaps the pages of the executable's code and constants.
///
/// The latter are in the page cache and come back, by a fault each few, when they are used again.
pub(crate) fn give_back() {
    // SAFETY: only touches the allocator's own free memory.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: the callback has the type that is asked for and uses no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_constant_segments), std::ptr::null_mut()) };
}

/// Called with the executable first, which is all there is in a static program.
unsafe extern "C" fn unmap_constant_segments(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut libc::c_void,
) -> c_int {
    const PAGE: usize = 4096;
    // SAFETY: the C library passes a description that is valid during the call.
    let object = unsafe { &*object };
    // SAFETY: the program headers stay mapped as long as the program.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (object.dlpi_addr + header.p_vaddr) as usize;
        let end = (start + header.p_memsz as usize).next_multiple_of(PAGE);
        let start = start - start % PAGE;
        // SAFETY: a private mapping of a file that was never writable: its pages are the file's, and read again at the next access.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_goes_on_after_giving_back() {
        let text = "x".repeat(100_000);
        super::give_back();
        assert_eq!(text.len() + format!("{:?}", Some(text.as_str())).len(), 200_008);
    }
}
