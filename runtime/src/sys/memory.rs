//! Sleeping with as little memory as possible.
//!
//! A monitor sleeps almost always, and there is one for every pod. Before it lies down it gives back the heap it
//! doesn't use and unmaps the pages of its own executable: these are in the page cache and come back, by a fault for
//! a few of them, when the program goes on. Whatever was written to since the start is kept.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::AsFd;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::mm::{Advice, madvise};

const PAGE: usize = 4096;

/// Waits for events, without a deadline, and returns how many there are.
pub(crate) fn sleep(epoll: impl AsFd, events: &mut Vec<epoll::Event>) -> rustix::io::Result<usize> {
    // SAFETY: only touches the allocator's own free memory.
    unsafe { libc::malloc_trim(0) };
    let mut unused = Unused { ranges: [(0, 0); 32], count: 0 };
    // SAFETY: the callback has the type that is asked for, and `unused` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(find_unused), std::ptr::from_mut(&mut unused).cast()) };
    unused.add_free_stack();
    isolate_last_steps();
    last_steps(epoll.as_fd(), events, &unused)
}

/// Pages that can be unmapped without losing anything.
struct Unused {
    ranges: [(usize, usize); 32],
    count: usize,
}

impl Unused {
    /// Ranges that there is no room for stay mapped.
    fn add(&mut self, start: usize, end: usize) {
        if let Some(range) = self.ranges.get_mut(self.count).filter(|_| start < end) {
            *range = (start, end);
            self.count += 1;
        }
    }

    /// What deeper calls than the ones to come have left on the stack, which is the main thread's.
    fn add_free_stack(&mut self) {
        const DEPTH_TO_COME: usize = PAGE;
        const SEARCHED: usize = 64 * PAGE;
        let here = std::ptr::from_ref(self) as usize / PAGE * PAGE;
        // Parts that are not mapped are passed over; the kernel keeps other mappings a megabyte away.
        self.add(here - DEPTH_TO_COME - SEARCHED, here - DEPTH_TO_COME);
    }

    /// The pages of a segment that nothing was written to. Others are private copies, which must stay.
    fn add_untouched(&mut self, start: usize, end: usize) {
        const SWAPPED: u64 = 1 << 62;
        const PRESENT: u64 = 1 << 63;
        const OF_FILE: u64 = 1 << 61;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(map) = rustix::fs::open("/proc/self/pagemap", flags, Mode::empty()) else { return };
        let mut entries = [0u8; 8 * 128];
        let wanted = &mut entries[..((end - start) / PAGE * 8).min(8 * 128)];
        let Ok(read) = rustix::io::pread(&map, &mut *wanted, (start / PAGE * 8) as u64) else { return };
        let mut run = start;
        let mut at = start;
        for entry in wanted[..read].as_chunks::<8>().0 {
            let entry = u64::from_ne_bytes(*entry);
            if entry & SWAPPED != 0 || entry & PRESENT != 0 && entry & OF_FILE == 0 {
                self.add(run, at);
                run = at + PAGE;
            }
            at += PAGE;
        }
        self.add(run, at);
    }
}

/// Called with the executable first, which is all there is in a static program.
unsafe extern "C" fn find_unused(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    unused: *mut libc::c_void,
) -> c_int {
    // SAFETY: this is what `sleep` passed, and nobody else has a reference to it now.
    let unused = unsafe { &mut *unused.cast::<Unused>() };
    // SAFETY: the C library passes a description that is valid during the call.
    let object = unsafe { &*object };
    // SAFETY: the program headers stay mapped as long as the program.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for header in headers {
        let start = (object.dlpi_addr + header.p_vaddr) as usize;
        let end = start + header.p_memsz as usize;
        match (header.p_type, header.p_flags & libc::PF_W) {
            (libc::PT_LOAD, 0) => unused.add(start / PAGE * PAGE, end.next_multiple_of(PAGE)),
            // Read-only since the program began; its last page may be shared with what is not.
            (libc::PT_GNU_RELRO, _) => unused.add_untouched(start.next_multiple_of(PAGE), end / PAGE * PAGE),
            _ => {}
        }
    }
    1
}

/// Makes the code that runs last a mapping of its own, by a flag that differs from its neighbours'. A fault maps the
/// pages around it too, as far as the mapping goes, and there the way back would begin with 64 KiB.
fn isolate_last_steps() {
    let start = last_steps as *const () as usize / PAGE * PAGE;
    // SAFETY: a flag for core dumps; the pages hold code of this program.
    let _ = unsafe { madvise(start as *mut _, 2 * PAGE, Advice::LinuxDontDump) };
}

/// Unmaps and waits, touching no code but its own in between: system calls are inlined.
#[inline(never)]
fn last_steps(
    epoll: std::os::fd::BorrowedFd<'_>,
    events: &mut Vec<epoll::Event>,
    unused: &Unused,
) -> rustix::io::Result<usize> {
    for (start, end) in unused.ranges.iter().take(unused.count) {
        // SAFETY: private mappings of a file to which nothing was written: the pages are the file's, and read again at
        // the next access. And the stack below all frames, which nothing reads before it writes.
        let _ = unsafe { madvise(*start as *mut _, end - start, Advice::LinuxDontNeed) };
    }
    epoll::wait(epoll, rustix::buffer::spare_capacity(events), None)
}

/// Has the C library's allocator give large blocks back to the kernel when they are freed, whatever their size was, and
/// keep two arenas instead of eight for each processor. For programs with threads, first thing in `main`.
pub fn keep_little() {
    /// From 1 MiB on a block is a mapping of its own. Left to itself, glibc lets the size grow to 32 MiB with what is
    /// freed, and keeps such blocks for each thread.
    const LARGE: libc::c_int = 1 << 20;
    // SAFETY: sets two numbers of the allocator, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_goes_on_after_its_sleep() {
        let text = "x".repeat(100_000);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        epoll::add(&epoll, &reader, epoll::EventData::new_u64(5), epoll::EventFlags::IN).unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let mut events = Vec::with_capacity(4);
        for _ in 0..3 {
            events.clear();
            assert_eq!(sleep(&epoll, &mut events).unwrap(), 1);
            assert_eq!(events[0].data.u64(), 5);
        }
        assert_eq!(text.len() + format!("{:?}", Some(text.as_str())).len(), 200_008);
    }

    #[test]
    fn pages_that_were_written_to_are_not_unused() {
        let mut memory = vec![0u8; 16 * PAGE];
        let start = (memory.as_ptr() as usize).next_multiple_of(PAGE);
        let offset = start - memory.as_ptr() as usize;
        memory[offset + 5 * PAGE] = 1;
        let mut unused = Unused { ranges: [(0, 0); 32], count: 0 };
        unused.add_untouched(start, start + 10 * PAGE);
        let written = start + 5 * PAGE;
        for (from, to) in &unused.ranges[..unused.count] {
            assert!(!(*from..*to).contains(&written));
        }
    }
}
