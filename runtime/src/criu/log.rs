//! What CRIU says went wrong.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// As many errors as are told: the others follow from these.
const MOST: usize = 3;

/// The first errors of a log, without the times and the places in CRIU's source.
pub fn reason(log: &Path) -> Option<String> {
    let lines = BufReader::new(File::open(log).ok()?).split(b'\n').map_while(Result::ok);
    let errors = lines.filter_map(|line| error(&String::from_utf8_lossy(&line)).map(str::to_owned));
    let mut first: Vec<String> = Vec::new();
    for error in errors {
        if first.len() < MOST && !first.contains(&error) {
            first.push(error);
        }
    }
    (!first.is_empty()).then(|| first.join("; "))
}

/// The text of `(00.071918) Error (criu/files-reg.c:1790): Can't lookup …`.
fn error(line: &str) -> Option<&str> {
    /// CRIU goes on without it, with fewer open files than it would like.
    const HARMLESS: &str = "Can't setup RLIMIT_NOFILE";
    let line = line.trim();
    let said = if line.starts_with('(') { line.split_once(") ")?.1 } else { line };
    // A process that is being restored tells its pid.
    let said = said.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    let said = said.strip_prefix(':').unwrap_or(said).trim_start().strip_prefix("Error (")?;
    let text = said.split_once("): ")?.1.trim();
    (!text.contains(HARMLESS)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_the_first_errors_that_matter() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("dump.log");
        assert_eq!(reason(&log), None);
        let lines = [
            "(00.063845) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
            "(00.070000) Warn  (criu/image.c:1): nothing",
            "(00.071918) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0 path=/dev/null",
            "(00.071927) Error (criu/cr-dump.c:1681): Dump files (pid: 30030) failed with -1",
            "(00.071927)      1: Error (criu/cr-dump.c:1681): Dump files (pid: 30030) failed with -1",
            "(00.095164) Error (criu/cr-dump.c:2111): Dumping FAILED.",
            "(00.095165) Error (criu/cr-dump.c:2111): the fourth",
        ];
        std::fs::write(&log, lines.join("\n")).unwrap();
        let text = "Can't lookup mount=24 for fd=0 path=/dev/null; Dump files (pid: 30030) failed with -1; Dumping FAILED.";
        assert_eq!(reason(&log).as_deref(), Some(text));
    }

    #[test]
    fn errors_of_restored_processes_are_errors() {
        let line = "(00.101)    212: Error (criu/mount.c:2241): mnt: Can't mount at ./proc: No such file";
        assert_eq!(error(line), Some("mnt: Can't mount at ./proc: No such file"));
        assert_eq!(
            error("Error (criu/vdso.c:381): vdso: Unexpected bounds"),
            Some("vdso: Unexpected bounds")
        );
        assert_eq!(error("(00.1) Dumping processes"), None);
    }
}
