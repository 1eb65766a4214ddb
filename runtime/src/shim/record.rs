//! The exit record: how a container ended, as a file in its bundle that outlives the shim.
//!
//! It appears whole or not at all, and before anybody is told.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::protocol::Exit;

const NAME: &str = "exit.json";
const TEMPORARY: &str = ".exit.json.tmp";

/// Writes the record into `bundle`.
pub(super) fn write(bundle: &Path, exit: &Exit) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(bundle, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(&directory, TEMPORARY, flags, Mode::from_raw_mode(0o600))?;
    let bytes = serde_json::to_vec(exit)?;
    let written = rustix::io::write(&file, &bytes);
    if !matches!(written, Ok(count) if count == bytes.len()) {
        // Half a record is worse than none, and it takes space that is short.
        let _ = rustix::fs::unlinkat(&directory, TEMPORARY, rustix::fs::AtFlags::empty());
        return Err(written.map_or_else(io::Error::from, |_| io::ErrorKind::WriteZero.into()));
    }
    Ok(rustix::fs::renameat(&directory, TEMPORARY, &directory, NAME)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_written_and_replaced_whole() {
        let bundle = tempfile::tempdir().unwrap();
        for code in [0, 137] {
            let exit = Exit { code, signal: None, oom_killed: false, started_at: 1, finished_at: 2 };
            write(bundle.path(), &exit).unwrap();
            let text = std::fs::read(bundle.path().join(NAME)).unwrap();
            assert_eq!(serde_json::from_slice::<Exit>(&text).unwrap(), exit);
        }
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
