//! Folders of the store: closed to everybody else, whoever made them and with whatever umask.

use std::{
    fs::{DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

const MODE: u32 = 0o700;

/// Opens a folder, made if missing with those above it, and closes it if it was open.
pub(crate) fn closed(path: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(MODE).create(path)?;
    let folder = File::open(path)?;
    if folder.metadata()?.permissions().mode() & 0o7777 != MODE {
        folder.set_permissions(Permissions::from_mode(MODE))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_closed_whether_it_is_new_or_was_open() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        let path = root.path().join("a/b");
        closed(&path).unwrap();
        assert_eq!((mode(&path), mode(&root.path().join("a"))), (MODE, MODE));
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        closed(&path).unwrap();
        assert_eq!(mode(&path), MODE);
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(closed(&file).is_err());
    }
}
