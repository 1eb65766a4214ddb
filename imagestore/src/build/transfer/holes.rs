//! Copies of files that keep their holes: what takes no room takes none in the copy.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use rustix::{fs, io::Errno};

/// Looking for holes in less is not worth it.
const LARGE: u64 = 1 << 20;

/// Copies a file of about `size` bytes, from its beginning, into an empty one.
pub(super) fn copy(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    if size < LARGE {
        return io::copy(from, to).map(drop);
    }
    let mut at = 0;
    loop {
        let data = match fs::seek(&*from, fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = fs::seek(&*from, fs::SeekFrom::Hole(data))?;
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        at = data + io::copy(&mut from.take(hole - data), to)?;
        if at < hole {
            // Cut short by somebody meanwhile.
            break;
        }
    }
    to.set_len(at.max(from.metadata()?.len()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_holes_and_all_of_the_data() {
        let mut from = tempfile::tempfile().unwrap();
        let size = 10 << 30;
        from.set_len(size).unwrap();
        let middle = vec![7; 100_000];
        from.write_all_at(b"begins", 0).unwrap();
        from.write_all_at(&middle, 5 << 30).unwrap();
        let mut to = tempfile::tempfile().unwrap();
        copy(&mut from, &mut to, size).unwrap();
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.len(), size);
        assert!(metadata.blocks() < 1000, "{} blocks", metadata.blocks());
        let mut seen = vec![0; middle.len() + 2];
        to.read_exact_at(&mut seen, (5 << 30) - 1).unwrap();
        assert!(seen[0] == 0 && seen[1..=middle.len()] == middle && seen[middle.len() + 1] == 0);
        to.read_exact_at(&mut seen[..7], 0).unwrap();
        assert_eq!(&seen[..7], b"begins\0");
    }

    #[test]
    fn files_without_holes_and_without_anything_are_copied() {
        for length in [0, 5, LARGE as usize - 1, LARGE as usize, 3 * LARGE as usize + 5] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let (mut from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.write_all_at(&bytes, 0).unwrap();
            copy(&mut from, &mut to, length as u64).unwrap();
            let mut seen = vec![1; length];
            to.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen == bytes && to.metadata().unwrap().len() == length as u64, "{length}");
        }
    }
}
