//! The specification's `unified` map: files of version 2 by name, values as they are.

use std::collections::{BTreeMap, HashMap};

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

pub(super) fn apply(directory: &Directory, files: &HashMap<String, String>) -> Result<(), Error> {
    // In an order of names, so that two runs do the same.
    for (name, value) in files.iter().collect::<BTreeMap<_, _>>() {
        // A name is a file of this directory: "cgroup.procs" of another or a path is not a limit.
        if name.contains('/') || !name.contains('.') || name.starts_with('.') {
            let reason = format!("{name:?} is not the name of a control file");
            return Err(Error::Invalid { limit: "unified", reason });
        }
        if !directory.has(name) {
            let reason = format!("this host has no {name}");
            return Err(Error::Invalid { limit: "unified", reason });
        }
        directory.write_each(name, value.lines())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn each_line_is_a_write() {
        let fake = Fake::with(&[("io.max", "")]);
        apply(&fake.directory(), &HashMap::from([("io.max".into(), "8:0 rbps=1\n8:16 rbps=2".into())]))
            .unwrap();
        assert_eq!(fake.text("io.max"), "8:0 rbps=18:16 rbps=2");
    }

    #[test]
    fn names_that_are_paths_or_unknown_are_refused() {
        let fake = Fake::with(&[]);
        for name in ["../memory.max", "memory", ".x", "memory.max"] {
            let files = HashMap::from([(name.to_owned(), "1".to_owned())]);
            assert!(apply(&fake.directory(), &files).unwrap_err().is_invalid_argument(), "{name}");
        }
    }
}
